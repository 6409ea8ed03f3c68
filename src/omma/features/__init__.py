"""Embedding of any number of images by any number of processes.

parts.py cuts the table into files that processes write each for itself, and joins them; local.py and
by_ray.py say which processes.
"""

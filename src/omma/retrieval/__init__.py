"""Indexes of vectors on disk, and the images nearest to a query."""

"""Classifiers from few labels: heads, adapters and their choice, on top of the pretraining engine."""

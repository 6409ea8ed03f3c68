"""Which images to remove, to look at, to label, to keep: findings of a collection as data."""

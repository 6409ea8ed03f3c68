"""What a run looked like, in one page: it sees arrays, numbers and text, never models."""

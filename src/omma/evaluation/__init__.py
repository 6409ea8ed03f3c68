"""Features and labels in, figures with intervals out."""

PROTOCOLS = ("knn", "linear", "ridge", "zeroshot", "retrieval")

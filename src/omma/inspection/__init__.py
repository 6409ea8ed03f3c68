"""Look inside a model: what it attends to, what an answer rests on, what a unit stands for."""

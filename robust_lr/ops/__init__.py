"""Operators (local relation, the stem), their reference in plain PyTorch, and how they are compiled."""

"""Layers of which the networks consist."""

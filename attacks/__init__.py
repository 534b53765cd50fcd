"""Attacks: pure functions on a model and a batch; they know neither data sets nor files."""

from .pgd import pgd_linf

__all__ = ["pgd_linf"]

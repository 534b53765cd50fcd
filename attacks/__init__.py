"""Attacks: pure functions on a model and a batch; they know neither data sets nor files."""

from .pgd import pgd_l2, pgd_linf
from .torchattacks_adapter import torchattack

__all__ = ["pgd_l2", "pgd_linf", "torchattack"]

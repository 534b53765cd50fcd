"""Attacks: pure functions on a model and a batch; they know neither data sets nor files."""

from .auto_pgd import apgd
from .pgd import pgd_l2, pgd_linf
from .square_search import square
from .torchattacks_adapter import torchattack

__all__ = ["apgd", "pgd_l2", "pgd_linf", "square", "torchattack"]

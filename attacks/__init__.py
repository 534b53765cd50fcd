"""Attacks: pure functions on a model and a batch; they know neither data sets nor files."""

from .auto_pgd import apgd
from .auto_pgd_l1 import apgd_l1
from .decoupled_direction_norm import ddn
from .fast_adaptive_boundary import fab
from .fast_minimum_norm import fmn
from .pgd import pgd_l2, pgd_linf
from .square_search import square
from .torchattacks_adapter import torchattack

__all__ = ["apgd", "apgd_l1", "ddn", "fab", "fmn", "pgd_l2", "pgd_linf", "square", "torchattack"]

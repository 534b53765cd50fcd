"""Attacks: pure functions on a model and a batch; they know neither data sets nor files."""

from .apgd_l1 import apgd_l1
from .auto_pgd import apgd
from .ddn import ddn
from .fab import fab
from .fmn import fmn
from .pgd import pgd_l2, pgd_linf
from .square_search import square
from .torchattacks_adapter import torchattack

__all__ = ["apgd", "apgd_l1", "ddn", "fab", "fmn", "pgd_l2", "pgd_linf", "square", "torchattack"]

"""Protocols: every value that an attack fixes, by name or as a frozen record."""

from .apgd import APGD
from .base import Protocol
from .cascade import Cascade
from .custom import Custom
from .fab import FAB
from .minimal_norm import DDN, FMN
from .pgd import PGD
from .presets import PROTOCOLS, SWEEPS, get, get_pgd
from .square import Square
from .sweep import Sweep
from .torchattacks import Library

__all__ = [
    "APGD",
    "DDN",
    "FAB",
    "FMN",
    "PGD",
    "PROTOCOLS",
    "SWEEPS",
    "Cascade",
    "Custom",
    "Library",
    "Protocol",
    "Square",
    "Sweep",
    "get",
    "get_pgd",
]

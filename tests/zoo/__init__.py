"""A zoo of broken defenses, their honest twins, and honest networks of many kinds, on the embedded images."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from . import broken

#: pages of broken defenses by name
BROKEN: dict[str, ModuleType] = {
    name: importlib.import_module(f"{broken.__name__}.{name}") for _, name, _ in pkgutil.iter_modules(broken.__path__)
}

"""One training run as a frozen record: TOML, overrides, recipes."""

from .training import Config, find, from_dict, load, shipped

__all__ = ["Config", "find", "from_dict", "load", "shipped"]

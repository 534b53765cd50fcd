"""The configuration of a training run: TOML files, overrides and recipes."""

from .training import Config, find, from_dict, load, shipped

__all__ = ["Config", "find", "from_dict", "load", "shipped"]

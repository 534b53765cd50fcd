"""Errors that the command line shows in one line, without a traceback.

A message names a parameter of the Python API in backticks, e.g. `out`; the command line shows its option instead.
"""

from __future__ import annotations


class InputError(ValueError):
    """Invalid input: data, options or names. Exit code 2."""

    exit_code = 2


class RunError(RuntimeError):
    """Valid input, but the work failed: missing compiler, full disk, NaN in training. Exit code 1."""

    exit_code = 1

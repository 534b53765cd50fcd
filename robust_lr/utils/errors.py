"""Errors that the user sees in one line, without a traceback.

A message names parameters of the Python API in backticks, like `out`; the command line shows its own options for them.
"""

from __future__ import annotations


class InputError(ValueError):
    """Wrong input: bad data, options or names. Exit code 2."""

    exit_code = 2


class RunError(RuntimeError):
    """The input was right, but the work failed: missing compiler, full disk, NaN in training. Exit code 1."""

    exit_code = 1

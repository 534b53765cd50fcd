"""The two errors that the toolkit raises on purpose; the command line turns them into exit codes."""


class InputError(ValueError):
    """Wrong input from the user: one line that names the value, what is allowed and what to do (exit code 2)."""


class RunError(RuntimeError):
    """Work that failed although its input was right, e.g. a non-finite loss or a compiler error (exit code 1)."""

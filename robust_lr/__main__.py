"""``python -m robust_lr`` and the command ``robust-lr``."""

from __future__ import annotations

import signal


def run() -> None:
    """Run the command line.

    While Python and PyTorch are being imported, Ctrl-C ends the process at once, without a traceback;
    ``progress_bars`` turns it back into KeyboardInterrupt when work begins that has something to save.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from .cli import main

    main(prog_name="robust-lr")


if __name__ == "__main__":
    run()

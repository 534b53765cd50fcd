"""``python -m robust_lr`` is the command line, for torchrun and friends."""

from .cli import main

main()

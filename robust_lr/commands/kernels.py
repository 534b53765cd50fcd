"""``robust-lr build`` and ``robust-lr doctor``: compile the kernels, and show the build environment."""

from __future__ import annotations

import click

from .terminal import say


@click.command()
@click.option(
    "--cuda/--no-cuda",
    default=None,
    help="Build the CUDA kernels too, or leave them out.  [default: build them if possible]",
)
@click.option(
    "--arch", metavar="LIST", help='Compute capabilities to build for, e.g. "8.0 9.0", on a machine without a GPU.'
)
def build(cuda: bool | None, arch: str | None) -> None:
    """Compile the kernels now instead of at first use.

    On a machine without a GPU, such as the login node of a cluster, use --arch to name the GPUs that jobs will run on.
    Each capability gets a library, which jobs find if they have the same cache, compilers and PyTorch.
    """
    from ..ops import build as extension
    from ..ops import library, nvcc
    from ..utils.errors import InputError

    if arch is not None and cuda is False:
        raise InputError(
            "--arch names GPUs to build the CUDA kernels for, --no-cuda leaves them out: give only one of them"
        )
    named = nvcc.capabilities(arch, "--arch") if arch is not None else []
    nvcc.check_compilable(named)
    say(f"CPU kernels: {library.find_or_build('cpu').path}")
    if named:
        for capability in named:
            say(f"CUDA kernels for {'.'.join(map(str, capability))}: {extension.build('cuda', [capability])}")
        return
    reason = None if cuda else extension.missing("cuda")
    if cuda is False or reason is not None:
        say(f"CUDA kernels: not built{'' if cuda is False else f', {reason}'}")
    else:
        say(f"CUDA kernels: {extension.build('cuda')}")


@click.command()
def doctor() -> None:
    """Show the compiler, PyTorch, CUDA and cache that were found, and which kernels will be used and why."""
    from ..ops.doctor import describe

    for name, value in describe().items():
        text = ", ".join(value) if isinstance(value, list) else "yes" if value is True else value or "-"
        say(f"{name.replace('_', ' '):18} {text or '-'}")

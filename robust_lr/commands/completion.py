"""``robust-lr completion``: shell completion of commands, options and names."""

from __future__ import annotations

from collections.abc import Callable

import click
from click.shell_completion import CompletionItem, get_completion_class

from .catalog import catalog

SHELLS = ("bash", "zsh", "fish")


def complete(kind: str) -> Callable[[click.Context, click.Parameter, str], list[CompletionItem]]:
    """Return a function that completes a word with the names of ``kind`` in the catalog."""

    def matches(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        names = catalog()[kind]
        return [CompletionItem(name, help=line or None) for name, line in names.items() if name.startswith(incomplete)]

    return matches


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print the script that completes robust-lr's commands, options and names in SHELL.

    \b
    bash   robust-lr completion bash >> ~/.bashrc
    zsh    robust-lr completion zsh >> ~/.zshrc
    fish   robust-lr completion fish > ~/.config/fish/completions/robust-lr.fish
    """
    main = click.get_current_context().find_root().command
    kind = get_completion_class(shell)
    assert kind is not None  # click supports all of SHELLS
    click.echo(kind(main, {}, "robust-lr", "_ROBUST_LR_COMPLETE").source())

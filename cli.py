"""The command line: options in, tables and files out. No mathematics lives here."""

from __future__ import annotations

import importlib
import logging
import re
import sys
from typing import Any, NoReturn

import click

from .utils.errors import InputError, RunError

#: name of a command -> its module in ``commands``, the function there, and its line in the overview
COMMANDS = {
    "adv-train": ("adv_train", "adv_train", "Train one network, by default adversarially, from a config."),
    "attack": ("attack", "attack", "Attack a trained network on the test images."),
    "build": ("kernels", "build", "Compile the kernels now rather than at first use."),
    "check": ("check", "check", "Compare attacks of known order on a sample of images."),
    "compare": ("compare", "compare", "Compare finished evaluations image by image."),
    "doctor": ("kernels", "doctor", "Show which compiler, PyTorch and CUDA were found and will be used."),
    "figure": ("figures", "figure", "Draw geometric priors, or composability on an image."),
    "list": ("protocol", "list_names", "List models, data sets, protocols, recipes, configs and guards."),
    "merge": ("merge", "merge", "Join the shards of one evaluation."),
    "plan": ("plan", "plan", "Estimate how long a training run will take."),
    "protocol": ("protocol", "protocol", "Show every value of a protocol and its source."),
    "table": ("tables", "table", "Train and print one of the paper's tables, 2 to 9."),
    "table9": ("tables", "table9", "Train, attack and print the paper's Table 9."),
    "watch": ("watch", "watch", "Follow a training run from another terminal."),
}


class Commands(click.Group):
    """Turns the toolkit's errors into one line and an exit code: 1 failed, 2 wrong input, 128 + n for signal n."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command when it is called, so that the others cost nothing."""
        if cmd_name not in COMMANDS:
            return None
        module, function, _ = COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(f".commands.{module}", __package__), function)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, _, summary) in sorted(COMMANDS.items())])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (InputError, RunError) as error:
            fail(with_options(str(error), self, ctx), error.exit_code)
        except OSError as error:
            fail(f"{error.filename or 'input or output'}: {error.strerror or error}", 1)
        except KeyboardInterrupt:
            fail("stopped by SIGINT; what was finished is kept, the same command goes on", 130)


def with_options(message: str, group: click.Group, ctx: click.Context) -> str:
    """``message`` with the options of the called command in place of the parameters that it names in backticks."""
    command = group.get_command(ctx, ctx.invoked_subcommand or "")
    options: dict[str, str] = {}
    for parameter in command.params if command else ():
        if isinstance(parameter, click.Option):
            longest = max(parameter.opts, key=len)
            options |= {parameter.name or "": longest, longest.lstrip("-").replace("-", "_"): longest}
    return re.sub(r"`(\w+)`", lambda found: options.get(found[1], found[1]), message)


def fail(message: str, code: int) -> NoReturn:
    click.echo(f"robust-lr: {message}", err=True)
    sys.exit(code)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="robust-lr", prog_name="robust-lr")
def main() -> None:
    """Adversarial training and white-box evaluation of image classifiers.

    \b
    robust-lr attack --targeted            attack the network that ships with the package
    robust-lr table9                       the paper's Table 9, small, in minutes
    robust-lr table N                      its other tables, 2 to 8; with --count-only in seconds
    robust-lr adv-train CONFIG             train one network
    """
    logging.basicConfig(format="%(message)s")
    logging.getLogger("robust_lr").setLevel(logging.INFO)  # e.g. that kernels are being compiled, which takes a while

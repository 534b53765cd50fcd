"""The command line: it reads options and writes tables and files. It computes nothing itself."""

from __future__ import annotations

import importlib
import logging
import os
import re
import shutil
import sys
import textwrap
from typing import Any, NoReturn

import click

from .utils.checks import check_name
from .utils.errors import InputError, RunError
from .utils.heap import keep_freed_memory

#: name of a command -> its module in ``commands``, the function there, and its line in the overview
COMMANDS = {
    "adv-train": ("adv_train", "adv_train", "Train one network, by default adversarially, from a config."),
    "attack": ("attack", "attack", "Attack a trained network on the test images."),
    "build": ("kernels", "build", "Compile the kernels now rather than at first use."),
    "check": ("check", "check", "Compare attacks of known order on a sample of images."),
    "compare": ("compare", "compare", "Compare finished evaluations image by image."),
    "completion": ("completion", "completion", "Print the completion script of a shell."),
    "doctor": ("kernels", "doctor", "Show which compiler, PyTorch and CUDA were found and will be used."),
    "figure": ("figures", "figure", "Draw geometric priors, or composability on an image."),
    "list": ("protocol", "list_names", "List models, data sets, protocols, recipes, configs and guards."),
    "merge": ("merge", "merge", "Join the shards of one evaluation."),
    "plan": ("plan", "plan", "Estimate how long a training run will take."),
    "profile": ("profile", "profile", "Show what each layer of a network sees and costs."),
    "protocol": ("protocol", "protocol", "Show every value of a protocol and its source."),
    "report": ("write_report", "report", "Write finished evaluations as one page, and as tables and figures."),
    "robustbench": ("robustbench", "robustbench", "Write an evaluation as a RobustBench leaderboard entry."),
    "rows": ("rows", "rows", "Export one row per evaluated image as CSV or Parquet."),
    "score": ("score", "score", "Judge saved adversarial images by any model."),
    "show": ("show", "show", "Show what an evaluation found, without its model."),
    "suite": ("suite", "suite", "Run models x data sets x attacks x seeds from one file, and report them."),
    "table": ("tables", "table", "Train and print one of the paper's tables, 2 to 9."),
    "table9": ("tables", "table9", "Train, attack and print the paper's Table 9."),
    "transfer": ("score", "transfer", "Print how the adversarial images of each model fool the others."),
    "watch": ("watch", "watch", "Follow a training run from another terminal."),
}


class Commands(click.Group):
    """A group that turns errors into one line and an exit code: 1 failed, 2 wrong input, 128 + n for signal n."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command when it is called, so that the others cost no time."""
        if cmd_name not in COMMANDS:
            return None
        module, function, _ = COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(f".commands.{module}", __package__), function)
        add_common_options(command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Suggest the nearest command for a name that does not exist."""
        if args and not args[0].startswith("-"):
            try:
                check_name("command", args[0], COMMANDS)
            except InputError as error:
                raise click.UsageError(str(error), ctx) from None
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, _, summary) in sorted(COMMANDS.items())])

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        """Run a command and exit; wrong options and arguments are also told in one line."""
        reset_console()
        try:
            return self.run_and_exit(args, standalone_mode, extra)
        finally:  # because options such as --quiet change it while they are parsed
            reset_console()

    def run_and_exit(self, args: tuple[Any, ...], standalone_mode: bool, extra: dict[str, Any]) -> Any:
        run: Any = super().main
        if not standalone_mode:
            return run(*args, standalone_mode=False, **extra)
        try:
            code = run(*args, standalone_mode=False, **extra)
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            sys.exit(error.exit_code)
        except click.UsageError as error:
            path = error.ctx.command_path if error.ctx else "robust-lr"
            fail(f"{error.format_message().rstrip('.')}; see `{path} --help`", error.exit_code)
        except click.ClickException as error:
            fail(error.format_message(), error.exit_code)
        except click.Abort:
            fail("stopped by SIGINT", 130)
        sys.exit(code if isinstance(code, int) else 0)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except (InputError, RunError) as error:
            fail(insert_options(str(error), self, ctx), error.exit_code)
        except OSError as error:
            fail(f"{error.filename or 'input or output'}: {error.strerror or error}", 1)
        except KeyboardInterrupt:
            fail("stopped by SIGINT; finished work is kept, and the same command resumes it", 130)
        except Exception as error:  # of any kind: users get one line rather than our source code
            if os.environ.get("ROBUST_LR_TRACEBACK"):
                raise
            fail(describe_unexpected(error), 1)


def add_common_options(command: click.Command) -> None:
    """Give ``--quiet`` to a command, or to the commands of a group."""
    from .commands.terminal import quiet_option

    for each in command.commands.values() if isinstance(command, click.Group) else [command]:
        if not any("--quiet" in parameter.opts for parameter in each.params):
            each.params.append(quiet_option())


def describe_unexpected(error: Exception) -> str:
    """Describe an unforeseen error in one line."""
    reason = str(error).strip().partition("\n")[0][:300]
    if isinstance(error, MemoryError) or "out of memory" in reason or "can't allocate memory" in reason:
        return f"not enough memory ({reason or 'MemoryError'}): use smaller batches, or fewer processes"
    return (
        f"unexpected {type(error).__name__}{': ' * bool(reason)}{reason}; ROBUST_LR_TRACEBACK=1 shows where it came "
        "from; please report it"
    )


def reset_console() -> None:
    """Let the console print everything to stdout again, if a command has imported it."""
    if terminal := sys.modules.get(f"{__package__}.commands.terminal"):
        terminal.console.quiet = terminal.console.stderr = False


def insert_options(message: str, group: click.Group, ctx: click.Context) -> str:
    """Replace the parameters that ``message`` names in backticks by the options of the called command."""
    command = group.get_command(ctx, ctx.invoked_subcommand or "")
    commands = [*command.commands.values()] if isinstance(command, click.Group) else [command] if command else []
    options: dict[str, str] = {}
    for parameter in (parameter for each in commands for parameter in each.params):
        if isinstance(parameter, click.Option):
            longest = max(parameter.opts, key=len)
            options |= {parameter.name or "": longest, longest.lstrip("-").replace("-", "_"): longest}
    return re.sub(r"`(\w+)`", lambda found: options.get(found[1], found[1]), message)


def fail(message: str, code: int) -> NoReturn:
    """Print one line on stderr, wrapped only on a terminal, and exit."""
    line = f"robust-lr: {' '.join(message.split())}"
    if sys.stderr.isatty():
        line = textwrap.fill(line, shutil.get_terminal_size().columns, break_long_words=False, break_on_hyphens=False)
    click.echo(line, err=True)
    sys.exit(code)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="robust-lr", prog_name="robust-lr")
@click.option("-q", "--quiet", is_flag=True, help="Print errors only; may also follow the command.")
@click.pass_context
def main(ctx: click.Context, quiet: bool) -> None:
    """Adversarial training and white-box evaluation of image classifiers.

    \b
    robust-lr attack --targeted            attack the network that ships with the package
    robust-lr table9                       the paper's Table 9, small, in minutes
    robust-lr table N                      its other tables, 2 to 8; with --count-only in seconds
    robust-lr adv-train CONFIG             train one network
    """
    keep_freed_memory()  # the process is ours
    if quiet:
        from .commands.terminal import hush_console

        hush_console()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("robust_lr").setLevel(
        logging.WARNING if quiet else logging.INFO
    )  # e.g. that kernels are being compiled, which takes a while

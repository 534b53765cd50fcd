"""The command line: options in, tables and files out. No mathematics lives here."""

from __future__ import annotations

import logging
import sys
from typing import Any, NoReturn

import click

from .commands.adv_train import adv_train
from .commands.attack import attack
from .commands.check import check
from .commands.compare import compare
from .commands.figures import figure
from .commands.kernels import build, doctor
from .commands.merge import merge
from .commands.plan import plan
from .commands.protocol import list_names, protocol
from .commands.tables import table, table9
from .commands.watch import watch
from .errors import InputError, RunError


class Commands(click.Group):
    """Turns the toolkit's errors into one line and an exit code: 1 failed, 2 wrong input, 128 + n for signal n."""

    def invoke(self, ctx: click.Context) -> Any:
        from .runs import Interrupted

        try:
            return super().invoke(ctx)
        except Interrupted as stop:
            fail(str(stop), 128 + stop.signal)
        except InputError as error:
            fail(str(error), 2)
        except RunError as error:
            fail(str(error), 1)
        except OSError as error:
            fail(f"{error.filename or 'input or output'}: {error.strerror or error}", 1)
        except KeyboardInterrupt:
            fail("stopped by SIGINT; what was finished is kept, the same command goes on", 130)


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


main.add_command(adv_train)
main.add_command(attack)
main.add_command(build)
main.add_command(check)
main.add_command(compare)
main.add_command(doctor)
main.add_command(figure)
main.add_command(list_names)
main.add_command(merge)
main.add_command(plan)
main.add_command(protocol)
main.add_command(table)
main.add_command(table9)
main.add_command(watch)

"""``robust-lr attack``: one model, one protocol, a table and a result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..errors import InputError
from ..progress import progress_bars
from ..terminal import GroupedCommand, console, grouped, say, use_threads
from .choice import choose, model_and_images

of_attack, of_guards, of_work = map(grouped, ("Attack", "Guards", "Work and output"))


@click.command(cls=GroupedCommand)
@of_attack("--targeted", is_flag=True, help="Protocol lrnet-targeted.")
@of_attack("--untargeted", is_flag=True, help="Protocol lrnet-untargeted.")
@of_attack("--protocol", metavar="NAME", help="A named protocol; see `robust-lr list`.")
@of_attack(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a value of the protocol, e.g. eps=8/255."
)
@of_attack("--seed", type=int, default=0, show_default=True, help="Of starts and targets.")
@model_and_images
@of_guards(
    "--allow",
    multiple=True,
    metavar="GUARD",
    help="Go on although this guard complains, e.g. probabilities; may be repeated.",
)
@of_work("--out", type=click.Path(path_type=Path), help="Folder for result.json and the ledger.")
@of_work("--fresh", is_flag=True, help="Evaluate anew, even if the folder holds an evaluation.")
@of_work("--batch-size", type=int, default=64, show_default=True, help="Images loaded at a time.")
@of_work("--workers", type=int, default=0, show_default=True, help="Processes that load images.")
@of_work("--threads", type=int, default=0, help="CPU threads.  [default: PyTorch's choice]")
@of_work("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, ...")
def attack(
    targeted: bool,
    untargeted: bool,
    protocol: str | None,
    overrides: tuple[str, ...],
    seed: int,
    allow: tuple[str, ...],
    out: Path | None,
    fresh: bool,
    batch_size: int,
    workers: int,
    threads: int,
    **where: Any,
) -> None:
    """Attack a trained network, white-box, on the test images; print a table and write result.json.

    An interrupted evaluation goes on where it was when the same command runs again.
    """
    from .. import config as config_room
    from ..evaluate import LEDGER, RESULT, evaluate
    from ..report import result_table

    chosen = [*["lrnet-targeted"] * targeted, *["lrnet-untargeted"] * untargeted, *[protocol] * (protocol is not None)]
    if len(chosen) != 1:
        raise InputError("which attack? give one of --targeted, --untargeted and --protocol NAME")
    config_room.at_least(0, workers=workers)
    config_room.at_least(1, batch_size=batch_size)
    table: dict[str, Any] = {"protocol": chosen[0]}
    for override in overrides:
        config_room.set_value(table, override, "key=value, e.g. eps=8/255")
    options = table.pop("model", {})
    settings = config_room.attack(table)
    use_threads(threads)
    choice = choose(**where, options=options)
    out = choice.folder / "attacks" / settings.name if out is None else out
    if fresh:
        (out / LEDGER).unlink(missing_ok=True)
    with progress_bars() as bars:
        task = bars.add(f"attacking {choice.name}", total=None)
        result = evaluate(
            choice.model,
            choice.data,
            settings,
            seed=seed,
            batch_size=batch_size,
            out=out,
            resume=True,
            name=choice.name,
            workers=workers,
            allow=allow,
            progress=lambda done, total: bars.update(task, completed=done, total=total),
        )
    console.print(result_table(result, settings))
    say(f"{result.seconds:.1f} s on {result.device}; written to {out / RESULT}")

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
@of_work("--figure", type=click.Path(path_type=Path), help="PNG of a curve; needs matplotlib.")
@of_work("--fresh", is_flag=True, help="Evaluate anew, even if the folder holds an evaluation.")
@of_work(
    "--precision",
    default="fp32",
    show_default=True,
    help="Of the attack: fp32, tf32 or bf16; a lower one must agree with fp32 on a sample.",
)
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
    figure: Path | None,
    fresh: bool,
    precision: str,
    batch_size: int,
    workers: int,
    threads: int,
    **where: Any,
) -> None:
    """Attack a trained network, white-box, on the test images; print a table and write result.json.

    An interrupted evaluation goes on where it was when the same command runs again.
    """
    from .. import config as config_room
    from .. import protocols, report
    from ..evaluate import LEDGER, RESULT, evaluate
    from ..ledger import remove
    from ..sweep import CURVE, Curve, sweep

    chosen = [*["lrnet-targeted"] * targeted, *["lrnet-untargeted"] * untargeted, *[protocol] * (protocol is not None)]
    if len(chosen) != 1:
        raise InputError("which attack? give one of --targeted, --untargeted and --protocol NAME")
    config_room.at_least(0, workers=workers)
    config_room.at_least(1, batch_size=batch_size)
    table: dict[str, Any] = {"protocol": chosen[0]}
    for override in overrides:
        config_room.set_value(table, override, "key=value, e.g. eps=8/255")
    options = table.pop("model", {})
    settings = protocols.SWEEPS[chosen[0]] if chosen[0] in protocols.SWEEPS else config_room.protocol(table)
    if figure is not None and not (isinstance(settings, protocols.Sweep) or settings.record):
        raise InputError(f"--figure draws a curve, which {settings.name!r} has not: use e.g. --protocol sweep-steps")
    if isinstance(settings, protocols.Sweep) and len(table) > 1:
        raise InputError(f"--set is for single protocols: {settings.name!r} is a sweep over several")
    use_threads(threads)
    choice = choose(**where, options=options)
    out = choice.folder / "attacks" / settings.name if out is None else out
    if fresh:
        for folder in [out / part.name for part in settings.parts] if isinstance(settings, protocols.Sweep) else [out]:
            remove(folder / LEDGER)
    with progress_bars() as bars:
        task = bars.add(f"attacking {choice.name}", total=None)
        work: dict[str, Any] = {
            "seed": seed,
            "batch_size": batch_size,
            "out": out,
            "resume": True,
            "name": choice.name,
            "workers": workers,
            "precision": precision,
            "allow": allow,
            "progress": lambda done, total: bars.update(task, completed=done, total=total),
        }
        if isinstance(settings, protocols.Sweep):
            curve = sweep(choice.model, choice.data, settings, **work)
        else:
            result = evaluate(choice.model, choice.data, settings, **work)
            curve = Curve(settings.name, settings.source, "steps", result.curve, [result])
            console.print(report.result_table(result, settings))
    if curve.points:
        console.print(report.curve_table(curve))
    if figure is not None:
        report.curve_picture(curve, figure)
    seconds = sum(result.seconds for result in curve.results)
    written = out / (CURVE if isinstance(settings, protocols.Sweep) else RESULT)
    say(f"{seconds:.1f} s on {curve.results[0].device}; written to {written}")

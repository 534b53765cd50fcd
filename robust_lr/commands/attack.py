"""``robust-lr attack``: one model, one protocol, a table and a result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..errors import InputError
from ..progress import progress_bars
from ..terminal import GroupedCommand, console, grouped, say, use_threads

of_attack, of_model, of_data, of_work = map(grouped, ("Attack", "Model", "Images", "Work and output"))


@click.command(cls=GroupedCommand)
@of_attack("--targeted", is_flag=True, help="Protocol lrnet-targeted.")
@of_attack("--untargeted", is_flag=True, help="Protocol lrnet-untargeted.")
@of_attack("--protocol", metavar="NAME", help="A named protocol; see `robust-lr list`.")
@of_attack(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a value of the protocol, e.g. eps=8/255."
)
@of_attack("--seed", type=int, default=0, show_default=True, help="Of starts and targets.")
@of_model("--checkpoint", type=click.Path(path_type=Path), help="Run folder or weights file.  [default: shipped]")
@of_data("--data", "data_name", help="Data set.  [default: the one that the checkpoint was trained on]")
@of_data("--root", type=click.Path(path_type=Path), help="Folder of a data set that does not ship.")
@of_data("--limit", type=int, default=0, help="Only so many test images, evenly spaced.  [default: all]")
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
    checkpoint: Path | None,
    data_name: str | None,
    root: Path | None,
    overrides: tuple[str, ...],
    limit: int,
    seed: int,
    batch_size: int,
    workers: int,
    threads: int,
    device: str,
    out: Path | None,
    fresh: bool,
) -> None:
    """Attack a trained network, white-box, on the test images; print a table and write result.json.

    An interrupted evaluation goes on where it was when the same command runs again.
    """
    from .. import checkpoint as checkpoint_room
    from .. import config as config_room
    from .. import data as data_room
    from ..evaluate import LEDGER, RESULT, evaluate
    from ..report import result_table
    from ..runs import pick_device, spread

    chosen = [*["lrnet-targeted"] * targeted, *["lrnet-untargeted"] * untargeted, *[protocol] * (protocol is not None)]
    if len(chosen) != 1:
        raise InputError("which attack? give one of --targeted, --untargeted and --protocol NAME")
    config_room.at_least(0, limit=limit, workers=workers)
    config_room.at_least(1, batch_size=batch_size)
    table: dict[str, Any] = {"protocol": chosen[0]}
    for override in overrides:
        config_room.set_value(table, override)
    settings = config_room.attack(table)
    use_threads(threads)
    model = checkpoint_room.load_model(checkpoint).to(pick_device(device))
    trained_on = checkpoint_room.about(checkpoint).get("data", data_room.DEFAULT)
    data = data_room.load(data_name or trained_on, "test", root)
    data = spread(data, limit) if limit else data
    if checkpoint is None:
        name = "lrnet26-shipped"
    elif checkpoint.is_dir() or checkpoint.name != checkpoint_room.WEIGHTS:
        name = checkpoint.resolve().name.removesuffix(".safetensors")
    else:
        name = checkpoint.resolve().parent.name  # a run's weights go by the name of the run
    if out is None:
        base = checkpoint if checkpoint is not None and checkpoint.is_dir() else Path("runs") / name
        out = base / "attacks" / settings.name
    if fresh:
        (out / LEDGER).unlink(missing_ok=True)
    with progress_bars() as bars:
        task = bars.add(f"attacking {name}", total=None)
        result = evaluate(
            model,
            data,
            settings,
            seed=seed,
            batch_size=batch_size,
            out=out,
            resume=True,
            name=name,
            workers=workers,
            progress=lambda done, total: bars.update(task, completed=done, total=total),
        )
    console.print(result_table(result, settings))
    say(f"{result.seconds:.1f} s on {result.device}; written to {out / RESULT}")

"""``robust-lr check``: signs that an evaluation cannot be trusted, before it is run on all images."""

from __future__ import annotations

import sys
from typing import Any

import click

from .options import choose, model_and_images
from .progress import progress_bars
from .terminal import GroupedCommand, console, grouped, processes_option, threads_option, use_threads

of_attack, of_guards, of_work = map(grouped, ("Attack", "Guards", "Work"))

#: images of a check where --limit says nothing
SAMPLE = 64


@click.command(cls=GroupedCommand)
@of_attack("--protocol", default="lrnet-untargeted", show_default=True, help="Name or TOML file of the attack.")
@of_attack("--seed", type=int, default=0, show_default=True, help="Seed of random starts.", metavar="N")
@model_and_images
@of_guards("--allow", multiple=True, metavar="GUARD", help="Go on although this guard complains; may be repeated.")
@threads_option(of_work)
@processes_option(of_work)
@of_work("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, ...")
def check(
    protocol: str, seed: int, allow: tuple[str, ...], threads: int | None, processes: int | None, **where: Any
) -> None:
    """Look for signs of a broken evaluation. A sample is attacked in ways whose order of strength is known.

    An attack must break every image at eps 255/255, be stronger than one step, than random noise and than a black-box
    attack, and gain nothing from more steps or restarts. Takes 64 images unless --limit says otherwise. Exit code 1 if
    a check fails.
    """
    from ..evaluation.sanity import sanity
    from ..protocols.files import named
    from .report import check_table

    use_threads(threads)
    attack = named(protocol)
    choice = choose(**{**where, "limit": where["limit"] or SAMPLE}, options={})
    with progress_bars() as bars:
        task = bars.add(f"checking {choice.name}", total=None)
        checks = sanity(
            choice.model,
            choice.data,
            attack,
            seed=seed,
            allow=allow,
            processes=processes,
            progress=lambda done, total: bars.update(task, completed=done, total=total),
        )
    console.print(check_table(f"{choice.name} on {choice.data.name}, {len(choice.data)} images", checks))
    if any(check.passed is False for check in checks):
        sys.exit(1)

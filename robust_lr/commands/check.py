"""``robust-lr check``: look for signs of a broken evaluation on a sample, before evaluating all images."""

from __future__ import annotations

import sys
from typing import Any

import click

from ..utils.errors import InputError
from .options import choose, model_and_images
from .progress import progress_bars
from .terminal import GroupedCommand, console, option_in_group, processes_option, threads_option, use_threads

of_attack, of_guards, of_work = map(option_in_group, ("Attack", "Guards", "Work"))

#: default number of images
SAMPLE = 64


@click.command(cls=GroupedCommand)
@of_attack("--protocol", default="lrnet-untargeted", show_default=True, help="Name or TOML file of the attack.")
@of_attack("--seed", type=int, default=0, show_default=True, help="Seed of random starts.", metavar="N")
@model_and_images
@of_guards(
    "--allow", multiple=True, metavar="GUARD", help="Do not let this guard stop the evaluation; may be repeated."
)
@of_guards("--binarize", is_flag=True, help="Also run the binarization test.")
@threads_option(of_work)
@processes_option(of_work)
@of_work("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, ...")
def check(
    protocol: str,
    seed: int,
    allow: tuple[str, ...],
    binarize: bool,
    threads: int | None,
    processes: int | None,
    **where: Any,
) -> None:
    """Look for signs of a broken evaluation on a sample of images.

    The sample is evaluated and probed with eight times the default budget, which gives a verdict: sound, weak or
    misled. The six indicators of attack failure (Pintor et al. 2022) follow and, with --binarize, the binarization test
    (Zimmermann et al. 2022). The sample has 64 images by default (--limit). The exit code is 1 if the verdict is misled
    or the binarization test fails.
    """
    from ..evaluation.binarization import binarize as run_binarization
    from ..evaluation.harness import evaluate
    from ..protocols.files import load_protocol
    from ..results.indicators import indicators
    from .report import check_table, verdict_text

    use_threads(threads)
    attack = load_protocol(protocol)
    if attack.eps == 0:
        raise InputError(f"protocol {attack.name!r} has eps = 0: there is nothing to check; use an attack")
    choice = choose(**{**where, "limit": where["limit"] or SAMPLE}, options={})
    with progress_bars() as bars:
        task = bars.add(f"checking {choice.name}", total=None)
        result = evaluate(
            choice.model,
            choice.data,
            attack,
            seed=seed,
            allow=allow,
            processes=processes,
            check="thorough",
            progress=lambda done, total: bars.update(task, completed=done, total=total),
        )
        tests = None
        if binarize:
            task = bars.add("binarization test", total=None)
            tests = run_binarization(
                choice.model,
                choice.data,
                attack,
                seed=seed,
                progress=lambda done, total: bars.update(task, completed=done, total=total),
            ).check()
    title = f"{choice.name} on {choice.data.name}, {len(choice.data)} images"
    console.print(check_table(title, result.validity))
    found = indicators(result.rows, attack, result.probes)
    console.print(check_table("indicators of attack failure", found if tests is None else (*found, tests)))
    console.print(verdict_text(result))
    if result.verdict == "misled" or (tests is not None and tests.passed is False):
        sys.exit(1)

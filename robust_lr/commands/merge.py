"""``robust-lr merge``: merge the shards of an evaluation."""

from __future__ import annotations

from pathlib import Path

import click

from .terminal import console, say


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for the merged evaluation.")
def merge(runs: tuple[Path, ...], out: Path) -> None:
    """Merge the shards of an evaluation or a sweep. RUNS are the folders that `robust-lr attack --shard i/n` wrote.

    The rows are identical to those of an evaluation without shards. Missing shards and repeated images are errors.
    """
    from ..protocols.files import from_values
    from ..results.curve import CURVE, merge_sweep
    from ..results.merge import merge as merge_runs
    from ..results.stored import RESULT
    from .report import check_table, curve_table, result_table

    if any((run / CURVE).is_file() for run in runs):
        console.print(curve_table(merge_sweep(runs, out)))
        say(f"{len(runs)} shards merged; written to {out / CURVE}")
        return
    result = merge_runs(runs, out)
    console.print(result_table(result, from_values(result.protocol)))
    console.print(check_table("validity", result.validity))
    say(f"{len(runs)} shards merged; written to {out / RESULT}")

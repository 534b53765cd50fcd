"""``robust-lr rows``: export the rows of evaluations as CSV or Parquet."""

from __future__ import annotations

from pathlib import Path

import click

from ..utils.errors import InputError
from .terminal import say

_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("run", type=_PATH)
@click.option("--csv", type=_PATH, help="CSV file.  [default: standard output]")
@click.option("--parquet", type=_PATH, help="Parquet file; needs polars, or pandas with pyarrow.")
def rows(run: Path, csv: Path | None, parquet: Path | None) -> None:
    """Export one row per evaluated image.

    RUN is a folder that `robust-lr attack` or `robust-lr suite` wrote. If it holds several evaluations, the first
    column names the folder of a row's evaluation.
    """
    from ..reports.collect import collect
    from ..results import export

    for name, path, suffix in (("csv", csv, ".csv"), ("parquet", parquet, ".parquet")):
        if path is not None and path.suffix.lower() != suffix:
            raise InputError(f"`{name}` {str(path)!r}: the file must end in {suffix}")
    evaluations = collect([run]).evaluations
    table = []
    for found in evaluations:
        prefix = {"evaluation": found.folder.relative_to(run).as_posix()} if len(evaluations) > 1 else {}
        table += export.records(found.evaluation.rows, **prefix)
    if csv is not None:
        export.write_csv(csv, table)
    if parquet is not None:
        export.write_parquet(parquet, table)
    if csv is None and parquet is None:
        click.echo(export.to_csv(table), nl=False)
        return
    for path in filter(None, (csv, parquet)):
        say(f"{len(table):,} rows written to {path}")

"""A short plain-text table of a result, for ``print``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..protocols.files import from_values
from ..utils.statistics import Proportion, format_interval, format_value

if TYPE_CHECKING:
    from .result import Result


def short_table(result: Result) -> str:
    """Return the model, the protocol, and one line for each accuracy with its interval and denominator."""
    figures = named_figures(result)
    counts = {name: f"{share.count} / {share.n}" for name, share in figures.items()}
    name_width, count_width = max(map(len, figures)), max(map(len, ["images", *counts.values()]))
    lines = [
        f"{result.model} on {result.data}",
        str(from_values(result.protocol)),
        f"{'':{name_width}}      %  95 % interval  {'images':>{count_width}}",
        *(
            f"{name:{name_width}}  {format_value(p):>5}  {format_interval(p):>13}  {counts[name]:>{count_width}}"
            for name, p in figures.items()
        ),
    ]
    if result.surrogate is not None:
        lines.append(f"transfer: gradients of {result.surrogate['name']}")
    if result.randomness is not None:
        lines.append(randomness_in_words(result.randomness))
    failed = [check.name for check in result.validity if check.passed is False]
    lines.append(f"failed checks: {', '.join(failed)}" if failed else "no check failed")
    if result.verdict is not None:
        lines.append(str(result.judgment))
    return "\n".join(lines)


def randomness_in_words(randomness: Mapping[str, Any]) -> str:
    """Return a line about the repeated passes of a random model."""
    low, high = (100 * end for end in randomness["one_pass_interval"])
    return (
        f"the model is random: images count as right if all of {randomness['passes']} passes are; one pass gets "
        f"{100 * randomness['one_pass']:.1f} % right ({low:.1f} to {high:.1f})"
    )


def named_figures(result: Result) -> dict[str, Proportion]:
    """Return the known accuracies and the success of a result, by their names in tables."""
    among = "was not the target" if result.protocol.get("targeted") else "was right"
    shares = {
        "clean accuracy": result.clean,
        "robust accuracy, last iterate": result.robust_last,
        "robust accuracy, worst seen": result.robust_worst_seen,
        f"success, where clean {among}": result.success,
        f"verdicts as with fp32, {result.precision}": result.agreement,
    }
    return {name: share for name, share in shares.items() if share is not None}

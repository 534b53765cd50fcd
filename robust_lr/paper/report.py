"""Tables for the terminal that show our results beside the paper's."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from math import isfinite

from rich import box
from rich.table import Table as RichTable
from rich.text import Text

from ..results.result import Result
from ..results.verdict import MISLED, SOUND, WEAK, verdicts_in_words
from ..utils.random_effects import Estimate
from ..utils.statistics import Proportion, format_interval, format_value
from .claims import Outcomes, Verdict
from .clean_accuracy import CLEAN, Accuracy
from .stages import describe_stages
from .tables import Results, Table


def render(table: Table, number: int, results: Results, outcomes: Outcomes) -> RichTable:
    """Return the table of results: accuracy under attack, or clean accuracy for a table without attacks."""
    if table.protocols:
        found = {key: result for key, result in results.items() if isinstance(result, Result)}
        return robustness_table(table, number, found, outcomes)
    return accuracy_table(table, number, {key: found for key, found in results.items() if isinstance(found, Accuracy)})


def accuracy_table(table: Table, number: int, results: Mapping[tuple[str, str, int, str], Accuracy]) -> RichTable:
    """Return a table of accuracy on clean images and cost: ours, as trained, and the paper's accuracy."""
    first = next(iter(results.values()))
    several = table.seeds > 1
    spread = f"mean and standard deviation of {table.seeds} seeds" if several else "with 95 % intervals"
    out = RichTable(
        title=f"Table {number}: {table.title}. {first.data}, {first.n} test images",
        caption=f"Accuracy in %, {spread}; "
        "parameters and multiply-adds of the networks as trained. The paper's accuracies are on ImageNet at full size.",
        box=box.SIMPLE_HEAD,
        padding=(0, 0, 0, 1),  # 80 columns are enough
        pad_edge=False,
    )
    out.add_column("\nnetwork", no_wrap=True)
    given = paper_columns(table)
    headings = [f"paper\n{column[:3]}-{column[3:]}" for column in given]
    for heading in ("\ntop-1", "\n+-" if several else "\n95 %", "\ntop-5", *headings, "M\nparams", "M mult.-\nadds"):
        out.add_column(heading, justify="right", no_wrap=True)
    for row in table.rows:
        for regime in table.regimes:
            runs = [results[row.label, regime, seed, CLEAN] for seed in table.seeds_of(row, regime)]
            found, top1 = runs[0], [100 * (run.top1.value or 0) for run in runs]
            top5 = [100 * (run.top5.value or 0) for run in runs if run.top5 is not None]
            out.add_row(
                row.label,
                Text(f"{statistics.mean(top1):.1f}", style="bold"),
                Text(f"{statistics.stdev(top1):.1f}" if len(runs) > 1 else format_interval(found.top1), style="dim"),
                f"{statistics.mean(top5):.1f}" if top5 else "-",
                *(format_figure(row.paper.get(column)) for column in given),
                f"{found.parameters / 1e6:.2f}",
                f"{found.multiply_adds / 1e6:.1f}",
            )
    return out


def cost_table(table: Table, number: int) -> RichTable:
    """Return a table of the networks' cost at the paper's size, counted here and as the paper gives it."""
    accuracy = paper_columns(table)
    out = RichTable(
        title=f"Table {number}: {table.title}",
        caption="One image of 224 x 224, 1000 classes. The paper counts operations by another rule, which gives about "
        "0.25 G more for ResNets and LR-Nets with bottleneck blocks: compare our counts only with each other.",
        box=box.SIMPLE_HEAD,
        padding=(0, 0, 0, 1),  # 80 columns are enough
        pad_edge=False,
    )
    out.add_column("\nnetwork", no_wrap=True)
    for heading in ("M\nparams", "\npaper", "\n%", "G mult.-\nadds", "FLOPs,\npaper"):
        out.add_column(heading, justify="right", no_wrap=True)
    for column in accuracy:
        out.add_column(f"paper\n{column[:3]}-{column[3:]}", justify="right", no_wrap=True)
    for row in table.rows:
        found = row.profile()
        params = row.size.get("params")
        out.add_row(
            row.label,
            f"{found.parameters / 1e6:.1f}",
            format_figure(params),
            "-" if params is None else f"{100 * (found.parameters / 1e6 / params - 1):+.1f}",
            f"{found.multiply_adds / 1e9:.2f}",
            format_figure(row.size.get("flops")),
            *(format_figure(row.paper.get(column)) for column in accuracy),
        )
    return out


def paper_columns(table: Table) -> list[str]:
    """Return the names of the clean accuracies that the paper gives for these rows."""
    return [column for column in ("top1", "top5") if any(column in row.paper for row in table.rows)]


def architecture_table(table: Table, number: int) -> RichTable:
    """Return a table of the networks' layers, stage by stage."""
    out = RichTable(
        title=f"Table {number}: {table.title}",
        caption="One image of 224 x 224, 1000 classes.",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    out.add_column("network")
    out.add_column("stage")
    out.add_column("output", justify="right")
    out.add_column("layers")
    out.add_column("M params", justify="right")
    out.add_column("G mult.-adds", justify="right")
    for row in table.rows:
        stages = describe_stages(**row.options)
        for stage in stages:
            out.add_row(
                row.label if stage is stages[0] else "",
                stage.name,
                str(stage.side),
                stage.layers,
                f"{stage.parameters / 1e6:.2f}",
                f"{stage.multiply_adds / 1e9:.3f}",
                end_section=stage is stages[-1],
            )
    return out


def one_line(result: Result | Accuracy) -> str:
    """Return a result in one line."""
    if isinstance(result, Result):
        return f"clean {result.clean}, robust {result.robust}"
    return f"top-1 {result.top1}" + ("" if result.top5 is None else f", top-5 {result.top5}")


def format_figure(number: float | None) -> Text:
    """Format a number of the paper, or "-" if there is none."""
    return Text("-" if number is None else f"{number:.1f}", style="italic")


def robustness_table(
    table: Table, number: int, results: Mapping[tuple[str, str, int, str], Result], outcomes: Outcomes
) -> RichTable:
    """Return a table of top-1 accuracy under the paper's attacks: ours, its interval, and the paper's."""
    first = next(iter(results.values()))
    names, several = [*table.protocols], table.seeds > 1
    runs = f", mean of {table.seeds} training runs" if several else ""
    once = " and ".join(
        regime for regime in table.regimes if len(table.seeds_of(table.rows[0], regime)) == 1 < table.seeds
    )
    out = RichTable(
        title=f"Table {number} on {first.data}, {first.n} test images: top-1 accuracy in %{runs}",
        caption=f"{table.attacks('regular', 0)[0].protocol}; last iterate. "
        f"95 % intervals over {'training runs and images' if several else 'images'}"
        f"{'; +-: standard deviation over the runs' if several else ''}"
        f"{f'; {once} training: one run, intervals over images' if once else ''}. "
        "The paper's accuracies are on ImageNet. "
        f"{''.join(describe_rates(table, regime) for regime in reversed(table.regimes))}"
        f"{verdicts_in_words([result.judgment for result in results.values()])}",
        box=box.SIMPLE_HEAD,
        padding=(0, 0, 0, 1),  # 80 columns are enough
        pad_edge=False,
    )
    out.add_column("\nnetwork", no_wrap=True)
    for regime in reversed(table.regimes):
        for heading in ("clean", *(name.removeprefix("lrnet-") for name in names)):
            out.add_column(f"{regime[:3]}.\n{heading}", justify="right", no_wrap=True)
    for row in table.rows:
        cells = []
        for regime in reversed(table.regimes):
            seed = table.seeds_of(row, regime)[0]
            for name in [CLEAN, *names]:
                paper = row.paper.get(("" if regime == "adversarial" else "regular-") + name)
                attack, figure = (names[0], "clean") if name == CLEAN else (name, "robust")
                if len(table.seeds_of(row, regime)) > 1:
                    cells.append(cell_of_runs(outcomes.estimates(row.label, regime, attack)[figure], paper))
                else:
                    result = results[row.label, regime, seed, attack]
                    cells.append(format_share(result.clean if name == CLEAN else result.robust, paper, several))
        lines = Text(f"{row.label}\n").append("+-\n95 %\n" if several else "95 %\n", style="dim")
        out.add_row(lines.append("paper", style="italic"), *cells, end_section=True)
    return out


def describe_rates(table: Table, regime: str) -> str:
    """Return a sentence with each network's learning rate; "" if the table does not say how they were chosen."""
    if not (rule := table.rate_rules.get(regime)):
        return ""
    rates = ", ".join(f"{row.label} {row.configs[regime].train.lr:g}" for row in table.rows)
    return f"Learning rates of {regime} training, each {rule}: {rates}. "


def verdict_table(results: Results) -> RichTable | None:
    """Return a table of the verdicts on robust accuracies by network and attack; None if there are no verdicts."""
    kinds: dict[tuple[str, str, str], list[Result]] = {}
    for (label, regime, _, attack), result in results.items():
        if isinstance(result, Result) and result.verdict is not None:
            kinds.setdefault((label, regime, attack), []).append(result)
    if not kinds:
        return None
    out = RichTable(
        title="Verdicts on the robust accuracies",
        caption="Points by which stronger attacks lower the robust accuracy, and its upper bound; means over training "
        "runs. Clean below robust: the attack raised the accuracy.",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for heading in ("network", "attack", "verdict"):
        out.add_column(heading, overflow="fold")
    for heading in ("robust", "too high by", "at most"):
        out.add_column(heading, justify="right", no_wrap=True)
    for (label, regime, attack), found in kinds.items():
        said = [str(result.verdict) for result in found]
        words = ", ".join(f"{said.count(name)} {name}" for name in (SOUND, WEAK, MISLED) if name in said)
        if any(result.robust.count > result.clean.count for result in found):
            words += ", clean below robust"
        inflated = [100 * result.inflation.value for result in found if result.inflation is not None]
        bounds = [100 * result.bound for result in found if result.bound is not None]
        out.add_row(
            label,
            f"{regime}, {attack}",
            words,
            f"{statistics.mean(100 * (result.robust.value or 0) for result in found):.1f}",
            f"{statistics.mean(inflated):.1f}" if inflated else "-",
            f"{statistics.mean(bounds):.1f}" if bounds else "-",
        )
    return out


def stronger_attacks(table: Table, outcomes: Outcomes) -> RichTable:
    """Return a table of the adversarially trained networks' worst seen accuracy under the [[stronger]] attacks."""
    out = RichTable(
        title="Adversarially trained, under stronger attacks: worst seen accuracy in %",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    out.add_column("attack", overflow="fold")
    out.add_column("images", justify="right")
    out.add_column("runs", justify="right")
    for row in table.rows:
        out.add_column(row.label, justify="right", no_wrap=True)
    for attack in table.stronger:
        found = [outcomes.estimates(row.label, "adversarial", attack.name)["worst-seen"] for row in table.rows]
        out.add_row(
            Text(attack.name),
            str(found[0].images),
            str(found[0].runs),
            *(f"{100 * each.value:.1f}" + ("" if each.std is None else f" +- {100 * each.std:.1f}") for each in found),
        )
    return out


def claims_table(verdicts: Sequence[Verdict]) -> RichTable:
    """Return a table of the paper's claims with our differences and verdicts."""
    out = RichTable(
        title="The paper's claims: differences of accuracy in points, adversarially trained",
        caption="95 % intervals over training runs and images, paired by image within seeds; p corrected for the "
        "number of claims (Holm).",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    out.add_column("claim")
    for heading in ("paper", "ours", "95 %", "p"):
        out.add_column(heading, justify="right", no_wrap=True)
    out.add_column("verdict")
    for verdict in verdicts:
        low, high = verdict.estimate.interval
        paper = verdict.claim.paper
        out.add_row(
            str(verdict.claim),
            Text("-" if paper is None else f"{paper:+.1f}", style="italic"),
            Text(f"{100 * verdict.estimate.value:+.1f}", style="bold"),
            f"{100 * low:+.1f} to {100 * high:+.1f}" if isfinite(low) else "-",
            f"{verdict.p_holm:.2g}",
            verdict.describe(),
        )
    return out


def format_share(share: Proportion, paper: float | None, beside_several: bool) -> Text:
    text = Text(f"{format_value(share)}\n", style="bold")
    text.append(f"-\n{format_interval(share)}" if beside_several else format_interval(share), style="not bold dim")
    return text if paper is None else text.append(f"\n{paper:.1f}", style="not bold italic")


def cell_of_runs(estimate: Estimate, paper: float | None) -> Text:
    low, high = (100 * min(max(end, 0.0), 1.0) for end in estimate.interval)
    text = Text(f"{100 * estimate.value:.1f}\n", style="bold")
    text.append(f"{100 * (estimate.std or 0):.1f}\n{low:.1f}-{high:.1f}", style="not bold dim")
    return text if paper is None else text.append(f"\n{paper:.1f}", style="not bold italic")

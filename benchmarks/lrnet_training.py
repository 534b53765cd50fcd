"""Why LR-Net-26 varies from one training run to the next: one change of its training at a time, over several seeds.

    python benchmarks/lrnet_training.py --study --out FILE
    python benchmarks/lrnet_training.py --out FILE --networks lrnet26 --variants baseline clip --seeds 0 1 2 3 4

Each run trains one network on 1,500 of the embedded training images for 3 epochs and measures its accuracy on 500
others, clean and under the paper's untargeted 16-step PGD; --set changes any of that. Test images are not touched. Runs
are kept in a folder, one file each, and are not repeated; FILE gets all of them with means and standard deviations.
Runs are divided among the cores, one thread each. --study makes all that docs/lrnet-training.md discusses, in about an
hour of one core.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robust_lr import config as config_room
from robust_lr import protocols
from robust_lr.config.training import Config, to_dict
from robust_lr.models.layers.geometric_prior import START_SCALE, GeometricPrior
from robust_lr.models.layers.local_relation import LocalRelation2d
from robust_lr.models.resnet import Block
from robust_lr.training.loop import adversarial_train, make_optimizer, moving_average
from robust_lr.training.run import Ready, new_network, prepare
from robust_lr.training.validation import accuracy
from robust_lr.utils.errors import RunError
from robust_lr.utils.files import write_json
from robust_lr.utils.provenance import device_name, versions

BASE = "lrnet26_fashion_mnist_mini"
HELD_OUT = 500
SMALL = (
    f"validation.images={HELD_OUT}",
    f"data.limit={1500 + HELD_OUT}",
    "attack={protocol='lrnet-train', steps=4, step_size='5/255'}",
    "train={epochs=3, batch_size=32, lr=0.05, warmup_epochs=0.5, milestones=[2]}",
)
ATTACK = "lrnet-untargeted"


@dataclass(frozen=True)
class Variant:
    """One change of the training.

    Attributes:
        hypothesis: the cause of the variation that the change would remove.
        overrides: of the config.
        initialize: changes the fresh network in place.
        optimizer: makes the optimizer of the network.
    """

    hypothesis: str
    overrides: tuple[str, ...] = ()
    initialize: Callable[[nn.Module], None] = lambda model: None
    optimizer: Callable[[nn.Module, Config], torch.optim.Optimizer] = lambda model, config: make_optimizer(
        model, config.train
    )


def relations(model: nn.Module) -> Iterable[LocalRelation2d]:
    return (module for module in model.modules() if isinstance(module, LocalRelation2d))


@torch.no_grad()
def scale_queries_and_keys(model: nn.Module, factor: float) -> None:
    for layer in relations(model):
        layer.query.weight.mul_(factor)
        layer.key.weight.mul_(factor)


@torch.no_grad()
def flatten_priors(model: nn.Module) -> None:
    """Let every geometric prior start at zero, so that position does not count at first."""
    for module in model.modules():
        if isinstance(module, GeometricPrior):
            module.value.weight.zero_()
            module.value.bias.zero_()


@torch.no_grad()
def scale_priors(model: nn.Module, factor: float) -> None:
    """Scale the differences between neighbors with which geometric priors start."""
    for module in model.modules():
        if isinstance(module, GeometricPrior):
            module.value.weight.mul_(factor)


def start_blocks_as_sums(model: nn.Module) -> None:
    """Undo the zero initialization of the last batch norm of each block."""
    for module in model.modules():
        if isinstance(module, Block):
            nn.init.ones_(module.last_norm.weight)


def set_batchnorm_momentum(model: nn.Module, momentum: float) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = momentum


def relation_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Parameters that decide the weights of local relation: query, key and prior."""
    return [
        p for layer in relations(model) for part in (layer.query, layer.key, layer.prior) for p in part.parameters()
    ]


def grouped(
    model: nn.Module, config: Config, chosen: Iterable[nn.Parameter], **options: float
) -> torch.optim.Optimizer:
    """Make SGD with its own options for the chosen parameters."""
    apart = list(chosen)
    ids = {id(parameter) for parameter in apart}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in ids]
    train = config.train
    return torch.optim.SGD(
        [{"params": rest}, {"params": apart, **options}],
        lr=train.lr,
        momentum=train.momentum,
        weight_decay=train.weight_decay,
    )


class ClippedSGD(torch.optim.SGD):
    """SGD that first scales gradients down to a norm of 1 over all parameters."""

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        nn.utils.clip_grad_norm_([p for group in self.param_groups for p in group["params"]], 1.0)
        return super().step(closure)


def clipped(model: nn.Module, config: Config) -> torch.optim.Optimizer:
    train = config.train
    return ClippedSGD(model.parameters(), lr=train.lr, momentum=train.momentum, weight_decay=train.weight_decay)


VARIANTS: dict[str, Variant] = {
    "baseline": Variant("none: the config as it is"),
    "4-channels": Variant("an eighth of the width leaves too few groups", ("model.channels_per_group=4",)),
    "2-channels": Variant("an eighth of the width leaves too few groups", ("model.channels_per_group=2",)),
    "1-channel": Variant(
        "an eighth of the width leaves too few groups: one in the stem, not eight", ("model.channels_per_group=1",)
    ),
    "equal-cost": Variant(
        "too few groups, now at the cost of ResNet-26", ("model.channels_per_group=1", "model.bottleneck=64")
    ),
    "table-prior": Variant("the prior network has too few hidden units, or dead ones", ("model.prior=table",)),
    "flat-prior": Variant("a random prior decides at first which neighbors count", initialize=flatten_priors),
    "half-prior": Variant("priors start too steep", initialize=lambda model: scale_priors(model, 0.5)),
    "double-prior": Variant("priors start too flat", initialize=lambda model: scale_priors(model, 2.0)),
    "small-queries": Variant(
        "queries and keys start too large", initialize=lambda model: scale_queries_and_keys(model, 0.1)
    ),
    "no-zero-init": Variant("blocks that start as their shortcut begin to learn late", initialize=start_blocks_as_sums),
    "double-rate": Variant("the learning rate is too low", ("train.lr=0.1",)),
    "half-rate": Variant("the learning rate is too high", ("train.lr=0.025",)),
    "long-warm-up": Variant("the rate rises too fast", ("train.warmup_epochs=1.5",)),
    "linear-decay": Variant(
        "two thirds of the steps at the highest rate leave noise in the weights", ("train.schedule=linear",)
    ),
    "large-batch": Variant("steps of few images are noisy", ("train.batch_size=64", "train.lr=0.1")),
    "average": Variant("the last weights are noisy", ("train.ema=0.97",)),
    "clean-start": Variant(
        "the network sees noisy images alone: every attack starts at a random point", ("train.clean_start=0.2",)
    ),
    "mixed": Variant("the network sees attacked images alone", ("train.mix=0.5",)),
    "eps-warm-up": Variant("the attack is too strong at first", ("train.eps_warmup_epochs=1.5",)),
    "smooth-labels": Variant("targets of 0 and 1 are too sharp for so few images", ("train.label_smoothing=0.1",)),
    "no-prior-decay": Variant(
        "weight decay pulls queries, keys and priors to zero",
        optimizer=lambda model, config: grouped(model, config, relation_parameters(model), weight_decay=0.0),
    ),
    "fast-statistics": Variant(
        "running statistics of batch norm lag behind the weights that are attacked",
        initialize=lambda model: set_batchnorm_momentum(model, 0.3),
    ),
    "slow-statistics": Variant(
        "running statistics of batch norm are noisy: they are of the last dozen batches",
        initialize=lambda model: set_batchnorm_momentum(model, 0.02),
    ),
    "clip": Variant("single steps are too long", optimizer=clipped),
    "smooth-similarity": Variant(
        "rounding flips signs of the gradient where query and key are close", ("model.composability=product",)
    ),
}


#: factor of the priors' start by name: as our networks have it, or PyTorch's own, which they had before
STARTS = {"steep": 1.0, "flat": 1 / START_SCALE}


@dataclass(frozen=True)
class Experiment:
    """Variants of networks that are trained with the same settings.

    Attributes:
        networks: their names.
        variants: names in ``VARIANTS``.
        start: of the geometric priors, a name in ``STARTS``.
        seeds: of the training runs.
        overrides: of the config, before those of a variant.
        label: name of the overrides.
    """

    networks: tuple[str, ...]
    variants: tuple[str, ...]
    start: str = "steep"
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    overrides: tuple[str, ...] = ()
    label: str = ""


LINEAR = ("train.schedule=linear", "train.lr=0.2")
EQUAL_COST = ("model.channels_per_group=1", "model.bottleneck=64")
TEN_SEEDS = tuple(range(10))


#: the runs of docs/lrnet-training.md
STUDY = (
    # causes, one change at a time
    Experiment(
        ("lrnet26",),
        ("baseline", "1-channel", "linear-decay", "double-rate", "fast-statistics", "large-batch"),
        start="flat",
    ),
    Experiment(
        ("lrnet26",),
        (
            "baseline",
            "1-channel",
            "average",
            "clean-start",
            "no-prior-decay",
            "smooth-labels",
            "no-zero-init",
            "clip",
            "small-queries",
        ),
    ),
    # the recipe that was kept, and what might steady it further
    Experiment(("lrnet26",), ("equal-cost",), seeds=TEN_SEEDS, overrides=LINEAR, label="linear-0.2"),
    Experiment(("resnet26",), ("baseline",), seeds=TEN_SEEDS, overrides=LINEAR, label="linear-0.2"),
    Experiment(
        ("lrnet26",),
        (
            "slow-statistics",
            "average",
            "long-warm-up",
            "no-prior-decay",
            "clip",
            "small-queries",
            "smooth-labels",
            "half-prior",
            "double-prior",
            "smooth-similarity",
        ),
        seeds=TEN_SEEDS,
        overrides=(*LINEAR, *EQUAL_COST),
        label="final",
    ),
    # learning rates: 0.2 is above
    *(
        Experiment(
            ("lrnet26",),
            ("small-queries",),
            overrides=("train.schedule=linear", f"train.lr={rate}", *EQUAL_COST),
            label=f"final-{rate}",
        )
        for rate in (0.05, 0.1, 0.4)
    ),
    *(
        Experiment(
            networks, (variant,), overrides=("train.schedule=linear", f"train.lr={rate}"), label=f"linear-{rate}"
        )
        for rate in (0.05, 0.1, 0.2, 0.4)
        for networks, variant in ((("lrnet26",), "equal-cost"), (("resnet26", "resnet50"), "baseline"))
    ),
)


def settings(network: str, variant: Variant, seed: int, overrides: Iterable[str]) -> Config:
    window = ", kernel_size=5" if network.startswith("lrnet") else ""
    model = f"model={{name='{network}', width=0.125, stem='stride2'{window}}}"
    return config_room.load(BASE, [*SMALL, model, f"seed={seed}", *overrides, *variant.overrides])


def train_once(config: Config, variant: Variant, start: str, ready: Ready) -> dict[str, Any]:
    """Train and measure one network; one whose loss is not finite counts as chance."""
    began, cpu = time.monotonic(), time.process_time()
    model = new_network(ready.spec, config.seed)
    scale_priors(model, STARTS[start])
    variant.initialize(model)
    average = moving_average(model, config.train)
    losses: list[float] = []
    try:
        for step in adversarial_train(
            model, ready.train, config, optimizer=variant.optimizer(model, config), average=average
        ):
            losses.append(step.loss)
    except RunError:  # the loss is not finite
        return {"clean": 10.0, "untargeted": 10.0, "diverged": len(losses), "cpu_seconds": 0.0}
    trained, training = time.monotonic() - began, time.process_time() - cpu
    kept = model if average is None else average.module
    attack = protocols.get_pgd(ATTACK)
    assert ready.validation is not None
    return {
        "clean": 100 * accuracy(kept, ready.validation),
        "untargeted": 100 * accuracy(kept, ready.validation, attack),
        "loss": statistics.mean(losses[-20:]),
        "losses": [round(statistics.mean(losses[i : i + 20]), 4) for i in range(0, len(losses), 20)],
        "seconds": round(trained, 1),
        "cpu_seconds": round(training, 1),
    }


def missing_runs(experiment: Experiment, folder: Path) -> Iterator[tuple[Path, str, str, int, Experiment]]:
    """Yield file, network, variant and seed of every run that the folder does not have."""
    for seed in experiment.seeds:  # all variants of one seed before the next, so that an unfinished run compares them
        for network, variant in product(experiment.networks, experiment.variants):
            label = "_".join(part for part in (network, variant, experiment.start, experiment.label) if part)
            file = folder / f"{label}_{seed}.json"
            if not file.exists():
                yield file, network, variant, seed, experiment


def make_run(file: Path, network: str, variant: str, seed: int, experiment: Experiment) -> None:
    """Train and measure one network with one thread, and write the file."""
    torch.set_num_threads(1)
    config = settings(network, VARIANTS[variant], seed, experiment.overrides)
    record = train_once(config, VARIANTS[variant], experiment.start, prepare(config))
    write_json(file, {"network": network, "variant": variant, "start": experiment.start, "seed": seed, **record})


def summary(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation (n - 1) over the seeds."""
    out: dict[str, Any] = {"seeds": len(records)}
    for figure in ("clean", "untargeted"):
        values = [record[figure] for record in records]
        out[figure] = {
            "mean": statistics.mean(values),
            "std": statistics.stdev(values) if len(values) > 1 else None,
            "values": values,
        }
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="file for all runs of the folder")
    parser.add_argument("--study", action="store_true", help="all runs of docs/lrnet-training.md")
    parser.add_argument("--networks", nargs="+", default=["resnet26", "lrnet26"])
    parser.add_argument("--variants", nargs="+", default=["baseline"], choices=VARIANTS)
    parser.add_argument("--start", choices=STARTS, default="steep", help="of geometric priors")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2, 3, 4], help="none: collect what is there")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--label", default="", help="name of what --set changes")
    parser.add_argument("--runs", type=Path, default=Path("runs/lrnet-training"))
    arguments = parser.parse_args()
    named = Experiment(
        tuple(arguments.networks),
        tuple(arguments.variants),
        arguments.start,
        tuple(arguments.seeds),
        tuple(arguments.set),
        arguments.label,
    )
    experiments = STUDY if arguments.study else (named,)
    todo = [run for experiment in experiments for run in missing_runs(experiment, arguments.runs)]
    with ProcessPoolExecutor(os.cpu_count(), mp_context=multiprocessing.get_context("spawn")) as pool:
        for _ in pool.map(make_run, *zip(*todo, strict=True)) if todo else ():
            pass
    table = collect(arguments.runs)
    for label, row in table.items():
        found = row["over_seeds"]["untargeted"]
        print(f"{label}: untargeted {found['mean']:.1f} +- {found['std'] or 0:.1f}, {len(row['runs'])} seeds")
    if arguments.out:
        config = settings(arguments.networks[0], VARIANTS["baseline"], 0, arguments.set)
        write_json(
            arguments.out,
            {
                "what": "accuracy in percent on the true label of held-out images, by network, variant and label",
                "attack": protocols.get(ATTACK).values(),
                "config": to_dict(config),
                "networks": table,
                "device": device_name(torch.device("cpu")),
                "versions": versions(),
            },
        )


def collect(folder: Path) -> dict[str, Any]:
    """Read all runs of a folder, by network, variant and label."""
    table: dict[str, Any] = {}
    for file in sorted(folder.glob("*.json")):
        record = json.loads(file.read_text())
        label = file.stem.rpartition("_")[0].replace("_", " ")
        row = table.setdefault(label, {"hypothesis": VARIANTS[record["variant"]].hypothesis, "runs": []})
        row["runs"].append(record)
    for row in table.values():
        row["over_seeds"] = summary(row["runs"])
    return table


if __name__ == "__main__":
    main()

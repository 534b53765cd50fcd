"""The harness against torchattacks: the same model, images, steps and start, in one run.

    python benchmarks/evaluation.py --out FILE [--device cuda] [--resnet RUN] [--images N] [--autoattack N]

Without --resnet, a ResNet-26 is trained first as the shipped LR-Net-26 was. For each network, 20 steps of PGD from the
clean images runs three ways that take turns: torchattacks' PGD with predictions for clean and finished images (a
recorder of predictions gives its worst iterate seen), our evaluation under the last iterate, and under the worst seen.
Ours includes all of it: guards, hashes, ledger, result. `same_verdicts` counts images.

AutoAttack "standard" runs on N images through our protocol and through torchattacks' components in its own cascade with
the same (official) values; on few images, so random starts leave room for a verdict to differ.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import robust_lr as rlr
from robust_lr.data.dataset import Dataset, spread
from robust_lr.protocols.pgd import PGD
from robust_lr.protocols.presets import get
from robust_lr.results.ledger import Ledger, read
from robust_lr.utils.devices import pick_device
from robust_lr.utils.files import write_json
from robust_lr.utils.provenance import device_name, versions

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torchattacks

BATCH = 64
ROUNDS = 3
Verdicts = dict[int, bool]


class Recorder(nn.Module):
    """The model as its user has it, and whether every prediction so far was right."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.labels = torch.empty(0)
        self.right = torch.empty(0)

    def watch(self, labels: Tensor) -> None:
        self.labels, self.right = labels, torch.ones_like(labels, dtype=torch.bool)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x)
        self.right &= logits.detach().argmax(1) == self.labels
        return logits


def theirs(model: nn.Module, data: Dataset, protocol: PGD) -> tuple[Verdicts, Verdicts]:
    """torchattacks' PGD: by image, right at the last iterate, and right at every iterate seen."""
    recorder = Recorder(model).eval()
    attack = torchattacks.PGD(
        recorder, eps=protocol.eps, alpha=protocol.step_size, steps=protocol.steps, random_start=False
    )
    last, seen = {}, {}
    device = next(model.parameters()).device
    for rows in torch.arange(len(data)).split(BATCH):
        x, y, ids = (column.to(device) for column in data.batch(rows))
        recorder.watch(y)
        with torch.no_grad():
            recorder(x)
        x_adv = attack(x, y)
        with torch.no_grad():
            held = recorder(x_adv).argmax(1) == y
        last |= dict(zip(ids.tolist(), held.tolist(), strict=True))
        seen |= dict(zip(ids.tolist(), recorder.right.tolist(), strict=True))
    return last, seen


def ours(model: nn.Module, data: Dataset, protocol: PGD, **options: Any) -> Verdicts:
    """By image, right under the protocol's criterion."""
    with tempfile.TemporaryDirectory() as folder:
        rlr.evaluate(model, data, protocol, out=folder, batch_size=BATCH, **options)
        return {row.id: row.robust for row in read(Path(folder) / "ledger.sqlite")}


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds and what it returned, a GPU's work included."""
    wait()
    began = time.perf_counter()
    found = run()
    wait()
    return time.perf_counter() - began, found


def wait() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def pgd(model: nn.Module, data: Dataset, protocol: PGD) -> dict[str, Any]:
    worst = dataclasses.replace(protocol, criterion="worst")
    runs: dict[str, Callable[[], Any]] = {
        "torchattacks": lambda: theirs(model, data, protocol),
        "last": lambda: ours(model, data, protocol),
        "worst": lambda: ours(model, data, worst),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    found: dict[str, Any] = {}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            took, found[name] = timed(run)
            seconds[name].append(took)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    last, seen = found["torchattacks"]
    return {
        "protocol": protocol.values(),
        "images": len(data),
        "accuracy": {
            "last": sum(last.values()) / len(data),
            "worst": sum(seen.values()) / len(data),
        },
        "seconds": medians,
        "all_seconds": seconds,
        "speedup": {name: medians["torchattacks"] / medians[name] for name in ("last", "worst")},
        "same_verdicts": {
            "last": sum(found["last"][id_] == held for id_, held in last.items()),
            "worst": sum(found["worst"][id_] == held for id_, held in seen.items()),
        },
    }


@contextmanager
def clocked(owner: Any, name: str, spent: list[float]) -> Iterator[None]:
    """Adds the time that calls of a function take to ``spent``."""
    function = getattr(owner, name)

    def call(*arguments: Any, **options: Any) -> Any:
        took, found = timed(lambda: function(*arguments, **options))
        spent.append(took)
        return found

    setattr(owner, name, call)
    try:
        yield
    finally:
        setattr(owner, name, function)


def overhead(model: nn.Module, data: Dataset, protocol: PGD) -> dict[str, float]:
    """Shares of an evaluation's time that guards, hashes of the input and ledger take, by their own clocks."""
    room, images = (
        importlib.import_module(f"robust_lr.{name}") for name in ("evaluation.session", "evaluation.batch_state")
    )
    spent: dict[str, list[float]] = {"guards": [], "ledger": [], "hashes": []}
    with (
        clocked(room, "guard", spent["guards"]),
        clocked(Ledger, "__init__", spent["ledger"]),
        clocked(Ledger, "add", spent["ledger"]),
        clocked(Ledger, "rows", spent["ledger"]),
        clocked(images, "input_hashes", spent["hashes"]),
        clocked(room, "content_hash", spent["hashes"]),
        clocked(room, "weights_hash", spent["hashes"]),
    ):
        whole, _ = timed(lambda: ours(model, data, protocol))
    return {"seconds": whole, **{name: sum(times) / whole for name, times in spent.items()}}


def autoattack(model: nn.Module, data: Dataset, rows: int) -> dict[str, Any]:
    """AutoAttack "standard" in full, ours and torchattacks' with the official values."""
    protocol = get("autoattack-standard")
    device = next(model.parameters()).device
    eps, (x, y, _) = protocol.eps, (column.to(device) for column in data.batch(torch.arange(len(data))))
    ball = {"norm": "Linf", "eps": eps, "seed": 0, "n_restarts": 1}
    model.eval()
    cascade = torchattacks.MultiAttack(
        [
            torchattacks.APGD(model, steps=100, loss="ce", **ball),
            torchattacks.APGDT(model, steps=100, n_classes=10, **ball),
            torchattacks.FAB(model, steps=100, multi_targeted=True, n_classes=10, **ball),
            torchattacks.Square(model, n_queries=5000, resc_schedule=False, **ball),
        ]
    )

    def run() -> int:
        with torch.no_grad():
            right = model(x).argmax(1) == y
        x_adv = cascade(x[right], y[right])
        with torch.no_grad():
            return int((model(x_adv).argmax(1) == y[right]).sum())

    their_seconds, their_robust = timed(run)
    our_seconds, result = timed(lambda: rlr.evaluate(model, data, protocol, compute_batch=rows, batch_size=rows))
    return {
        "eps": eps,
        "images": len(data),
        "compute_batch": rows,
        "robust": {"torchattacks": their_robust, "ours": result.robust.count},
        "seconds": {"torchattacks": their_seconds, "ours": our_seconds},
        "speedup": their_seconds / our_seconds,
        "forwards": result.forwards,
        "backwards": result.backwards,
    }


def resnet26(run: Path | None) -> nn.Module:
    """ResNet-26 trained as the shipped LR-Net-26 was."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = run or Path(scratch) / "resnet26"
        if run is None:
            config = rlr.config.load("lrnet26_fashion_mnist_mini", ["model.name=resnet26"])
            for _ in rlr.train_run(config, folder):
                pass
        return rlr.load_model(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--resnet", type=Path, help="run folder of a trained ResNet-26; by default one is trained")
    parser.add_argument("--images", type=int, default=512, help="for PGD")
    parser.add_argument("--autoattack", type=int, default=0, metavar="N", help="images for AutoAttack; 0: none")
    parser.add_argument("--rows", type=int, default=8, help="rows of a pass of ours in AutoAttack")
    parser.add_argument("--eps", type=float, nargs="+", default=[16.0, 32.0], help="of PGD, in 255ths")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = rlr.data.load("fashion-mnist-mini", "test")
    protocols = [PGD(eps=eps / 255, step_size=eps / 8 / 255, steps=20, start="clean") for eps in options.eps]
    device = pick_device(options.device)
    networks = {"LR-Net-26": rlr.load_model().to(device), "ResNet-26": resnet26(options.resnet).to(device)}
    record: dict[str, Any] = {
        "device": device_name(device),
        "versions": {**versions(), "torchattacks": metadata.version("torchattacks")},
        "networks": {},
    }
    for name, model in networks.items():
        images = spread(data, options.images)
        found: dict[str, Any] = {
            "pgd": [pgd(model, images, protocol) for protocol in protocols],
            "overhead": overhead(model, images, protocols[0]),
        }
        if options.autoattack:
            found["autoattack"] = autoattack(model, spread(data, options.autoattack), options.rows)
        record["networks"][name] = found
        print(name, [(run["speedup"], run["same_verdicts"]) for run in found["pgd"]], found["overhead"], flush=True)
        write_json(options.out, record)


if __name__ == "__main__":
    main()

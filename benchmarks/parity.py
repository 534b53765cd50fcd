"""Verdicts of our AutoAttack beside those of the official code, image by image.

    AUTOATTACK=FOLDER python benchmarks/parity.py --out FILE [--cases NAME ...] [--images N] [--work FOLDER]

FOLDER holds a checkout of fra31/auto-attack, of which nothing is part of this repository. Three small networks are
trained adversarially here, in seconds; the official cascade and ours then attack the same images: "standard" in three
norms, "plus" in two, and "rand" with normal noise on the images. APGD gets our starts, which are keyed by image; the
official FAB and Square keep their own draws, and so does a random model. What is finished stays in the work folder, so
that an interrupted run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, nn

import robust_lr as rlr
from robust_lr import protocols
from robust_lr.attacks.starts import on_surface
from robust_lr.results.stored import read_evaluation
from robust_lr.utils.provenance import versions
from robust_lr.utils.rng import START, normal

#: by norm: the radius in adversarial training, and the radius of the attacks that are compared
BALLS = {"linf": (0.06, 0.2), "l2": (0.7, 2.6), "l1": (0.7, 30.0)}
NAMES = {"linf": "Linf", "l2": "L2", "l1": "L1"}
#: standard deviation of the noise of random models
NOISE = 0.1


class Case(NamedTuple):
    """One version of the cascade in one norm, and the number of images compared on each network."""

    version: str
    norm: str
    protocol: str
    images: int


CASES = {
    "linf": Case("standard", "linf", "autoattack-standard", 1000),
    "l2": Case("standard", "l2", "autoattack-standard-l2", 1000),
    "l1": Case("standard", "l1", "autoattack-standard-l1", 100),
    "plus": Case("plus", "linf", "autoattack-plus", 100),
    "plus-l2": Case("plus", "l2", "autoattack-plus-l2", 100),
    "rand": Case("rand", "linf", "autoattack-rand", 100),
}


class Noisy(nn.Module):
    """A model that adds normal noise to its images."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x + NOISE * torch.randn_like(x))
        return logits


def conv() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 4, 4), nn.ReLU(), nn.Flatten(), nn.Linear(392, 48), nn.ReLU(), nn.Linear(48, 10)
    )


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))


def smooth() -> nn.Module:
    return nn.Sequential(
        nn.AvgPool2d(2),
        nn.Conv2d(1, 8, 3, 2),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(288, 32),
        nn.GELU(),
        nn.Linear(32, 10),
    )


def deep() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, 2), nn.GELU(),
        nn.Conv2d(8, 16, 3, 2), nn.GELU(),
        nn.Conv2d(16, 32, 3, 2), nn.GELU(),
        nn.Flatten(), nn.Linear(128, 10),
    )  # fmt: skip


NETWORKS = {"conv": conv, "mlp": mlp, "smooth": smooth, "deep": deep}
COMPARED = ("conv", "mlp", "smooth")


def trained(name: str, norm: str, epochs: int = 3) -> nn.Module:
    """The network after PGD adversarial training on the embedded images."""
    torch.manual_seed(0)
    model = NETWORKS[name]()
    data = rlr.data.load("fashion-mnist-mini", "train")
    x, y, _ = data.batch(torch.arange(len(data)))
    attack = rlr.attacks.pgd_linf if norm == "linf" else rlr.attacks.pgd_l2
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    order = torch.Generator().manual_seed(0)
    eps = BALLS[norm][0]
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=order).split(100):
            x_adv = attack(model, x[rows], y[rows], eps=eps, step_size=eps / 2, steps=4)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x_adv), y[rows]).backward()
            optimizer.step()
    return model.eval()


def official(model: nn.Module, x: Tensor, y: Tensor, ids: Tensor, case: Case, eps: float) -> Tensor:
    """Return True for each image that the official code fails to break, [N]."""
    from autoattack import AutoAttack  # type: ignore[import-not-found]

    attack = AutoAttack(
        model, norm=NAMES[case.norm], eps=eps, version=case.version, device="cpu", verbose=False, seed=0
    )
    number = {image.numpy().tobytes(): int(i) for image, i in zip(x, ids, strict=True)}

    def use_our_starts(part: Any) -> None:
        perturb, single, shrinking = part.perturb, part.attack_single_run, part.decr_eps_pgd

        def begin(*arguments: Any) -> Any:
            part.draw = 0
            return perturb(*arguments)

        def keys(images: Tensor) -> tuple[Tensor, int]:
            part.draw += 1
            return torch.tensor([number[image.numpy().tobytes()] for image in images]), part.draw - 1

        def run(images: Tensor, labels: Tensor, x_init: Tensor | None = None) -> Any:
            if x_init is None:
                own, draw = keys(images)
                x_init = on_surface(images, own, eps, case.norm, seed=0, draw=draw)
            return single(images, labels, x_init=x_init)

        def run_in_shrinking_balls(images: Tensor, *arguments: Any) -> Any:
            own, draw = keys(images)
            noise = normal(0, START, own, images.shape[1:], draw)
            with patch("torch.randn_like", lambda _: noise):
                return shrinking(images, *arguments)

        part.perturb, part.attack_single_run, part.decr_eps_pgd = begin, run, run_in_shrinking_balls

    for part in (attack.apgd, attack.apgd_targeted):
        use_our_starts(part)
    predictions: Tensor = attack.run_standard_evaluation(x, y, bs=len(x), return_labels=True)[1]
    return predictions == y


def compare(name: str, case: Case, images: int, work: Path) -> dict[str, Any]:
    """Attack one network with the official code and with ours, and compare the verdicts."""
    norm = case.norm
    model, eps = trained(name, norm), BALLS[norm][1]
    if case.version == "rand":
        model = Noisy(model).eval()
    data = rlr.data.load("fashion-mnist-mini", "test").take(images)
    x, y, ids = data.batch(torch.arange(len(data)))
    began = time.perf_counter()
    kept = work / f"{name}-{case.protocol}-{images}-official.json"
    if not kept.exists():
        robust = official(model, x, y, ids, case, eps).tolist()
        kept.write_text(json.dumps({"robust": robust, "seconds": time.perf_counter() - began}))
    theirs = json.loads(kept.read_text())
    folder = work / f"{name}-{case.protocol}-{images}"
    ours = rlr.evaluate(model, data, protocols.get(case.protocol).at(eps), out=folder, fresh=True, check="off")
    rows = {row.id: row for row in read_evaluation(folder).rows}
    differing = [
        {"image": i, "official": "robust" if robust else "broken", "ours": rows[i].broken_by or "robust"}
        for i, robust in zip(ids.tolist(), theirs["robust"], strict=True)
        if robust != rows[i].robust
    ]
    return {
        "network": name,
        "version": case.version,
        "norm": norm,
        "eps": eps,
        "images": len(data),
        "clean": ours.clean.count,
        "robust, official": sum(theirs["robust"]),
        "robust, ours": ours.robust.count,
        "broken by, ours": ours.broken_by,
        "equal verdicts": 1 - len(differing) / len(data),
        "differing": differing,
        "seconds, official": theirs["seconds"],
        "seconds, ours": ours.seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, help="at most so many images on each network")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--work", type=Path, default=Path("runs/parity"))
    options = parser.parse_args()
    if "AUTOATTACK" not in os.environ:
        parser.error("set AUTOATTACK to a folder with the official code (fra31/auto-attack)")
    sys.path.insert(0, os.environ["AUTOATTACK"])
    torch.set_num_threads(1)
    options.work.mkdir(parents=True, exist_ok=True)
    found = []
    for case in (CASES[key] for key in options.cases):
        images = min(case.images, options.images or case.images)
        for name in COMPARED:
            file = options.work / f"{name}-{case.protocol}-{images}.json"
            if not file.exists():
                file.write_text(json.dumps(compare(name, case, images, options.work)))
            found.append(json.loads(file.read_text()))
            print(json.dumps(found[-1]), flush=True)
    images, differing = sum(f["images"] for f in found), sum(len(f["differing"]) for f in found)
    whole = {
        "equal verdicts": 1 - differing / images,
        "images": images,
        "command": "AUTOATTACK=FOLDER python benchmarks/parity.py --out FILE",
        "versions": versions(),
        "comparisons": found,
    }
    options.out.write_text(json.dumps(whole, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""Random models: attacks average gradients over their draws, and verdicts rest on repeated passes.

Each image is queried separately, with the generators of PyTorch, NumPy and Python seeded by (seed, image id, number of
passes made so far). What a model draws for an image therefore depends on nothing else: not on the batch, the shard, the
processes or a resumed run.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..protocols.base import Protocol, StepwiseProtocol
from ..utils.checks import check_whole
from ..utils.contexts import Model
from ..utils.errors import InputError
from ..utils.rng import MODEL, words
from .model_under_test import Bench, check_finite, check_logits

#: default and maximum number of passes behind a verdict on a random model
VERDICT_PASSES, MAX_VERDICT_PASSES = 10, 1000

#: share of the largest logit by which two passes of a deterministic model may differ
NOISE = 1e-5

#: number of passes, and rows of each, that show whether a model draws for each row or for whole passes
REPEATS, COPIES = 8, 8
#: maximum ratio of the variance between passes to that of independent rows; above it, rows share draws
MAX_RATIO = 2.5


@dataclass(frozen=True)
class Draws:
    """Properties of a random model's draws.

    Attributes:
        by_row: each row of a pass has its own draws; otherwise each draw needs a pass of one row.
        keyed: seeding the generators of PyTorch, NumPy and Python fixes the draws.
    """

    by_row: bool
    keyed: bool


def check_verdict_passes(verdict_passes: int) -> None:
    check_whole(2, verdict_passes=verdict_passes)
    if verdict_passes > MAX_VERDICT_PASSES:
        raise InputError(f"verdict_passes = {verdict_passes}: at most {MAX_VERDICT_PASSES} passes over each image")


def averages_draws(protocol: Protocol) -> bool:
    """Return True if every attack of ``protocol`` that follows gradients averages them over draws."""
    parts = protocol.attacks()
    follow = [part for part in parts if part.follows_gradients]
    return all(isinstance(part, StepwiseProtocol) for part in parts) and all(part.eot > 1 for part in follow)


@contextmanager
def seed_generators(number: int) -> Iterator[None]:
    """Seed the generators of PyTorch, NumPy and Python, and restore them afterwards."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(number)
            np.random.seed(number % 2**32)
            random.seed(number)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def image_seeds(seed: int, ids: Tensor, moments: Tensor) -> list[int]:
    """Return a seed for each image at its moment."""
    parts = words(seed, MODEL, ids, 2, draw=moments)
    return ((parts[:, 0] << 31) ^ parts[:, 1]).tolist()


def detect_randomness(model: Model, x: Tensor, away: Tensor, ids: Tensor, seed: int) -> Draws | None:
    """Return how the model draws, or None if passes over clean images and images ``away`` show no randomness."""
    with torch.no_grad():
        first = [model(each) for each in (x, away)]
        again = [model(each) for each in (x, away)]
        scale = float(torch.cat(first).abs().max())
        if all(float((one - two).abs().max()) <= NOISE * scale for one, two in zip(first, again, strict=True)):
            return None
        same = []
        for _ in range(2):
            with seed_generators(image_seeds(seed, ids[:1], torch.zeros_like(ids[:1]))[0]):
                same.append(model(away[:1]))
        ratios = [ratio_of_variances(model, image) for image in torch.split(away, 1)[:4]]
    return Draws(by_row=sum(ratios) / len(ratios) < MAX_RATIO, keyed=torch.equal(*same))


def ratio_of_variances(model: Model, image: Tensor) -> float:
    """Return the variance of the means of passes relative to independent rows; about 1 if each row draws separately."""
    passes = torch.stack([model(image.repeat(COPIES, 1, 1, 1)).double() for _ in range(REPEATS)])
    within, between = passes.var(1).mean(), COPIES * passes.mean(1).var(0).mean()
    return float(between / within) if within > 0 else float("inf") if between > 0 else 1.0


@dataclass(frozen=True)
class RandomBench(Bench):
    """A random model under evaluation.

    Args:
        draws: properties of its draws.
        verdict_passes: number of passes behind each verdict, all of which must be right.
    """

    draws: Draws = Draws(by_row=False, keyed=False)
    verdict_passes: int = VERDICT_PASSES

    @property
    def is_keyed(self) -> bool:
        return self.draws.keyed

    @property
    def randomness(self) -> dict[str, Any] | None:
        by = "by row" if self.draws.by_row else "by pass"
        return {"passes": self.verdict_passes, "draws": by, "keyed": self.draws.keyed}

    def passes_per_query(self, part: StepwiseProtocol) -> tuple[int, int]:
        forwards, backwards = part.passes_per_query(self.num_classes)
        return part.eot * forwards, part.eot * backwards

    def pad(self, column: Tensor, rows: int | None = None) -> Tensor:
        return column  # each image is queried separately

    def pass_sizes(self, draws: int) -> list[int]:
        """Return the numbers of rows of the passes that make ``draws`` draws for one image."""
        most = self.rows if self.draws.by_row else 1
        return [most] * (draws // most) + [draws % most] * (draws % most > 0)

    def verdict_logits(self, x: Tensor, ids: Tensor, moments: Tensor) -> Tensor:
        found = []
        with torch.no_grad(), self.name_failing_image(x, ids):
            for number, image in zip(image_seeds(self.seed, ids, moments), torch.split(x, 1), strict=True):
                with seed_generators(number):
                    parts = [self.model(image.repeat(rows, 1, 1, 1)) for rows in self.pass_sizes(self.verdict_passes)]
                found.append(torch.cat(parts))
        logits = torch.stack(found, 1)
        for each in logits:
            check_logits(each, len(x), self.num_classes)
            check_finite(each, ids)
        return logits

    def evaluate_query(
        self, part: StepwiseProtocol, query: Tensor, rows: Mapping[str, Tensor], targets: Tensor | None, gradient: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        seen = []
        for i, number in enumerate(image_seeds(self.seed, rows["id"], rows["forwards"])):
            image, toward = query[i : i + 1], None if targets is None else targets[i : i + 1]
            own = {name: rows[name][i : i + 1] for name in ("id", "draw", "step", "away")}
            parts = []
            with seed_generators(number):
                for n in self.pass_sizes(part.eot):
                    many = None if toward is None else toward.repeat(n)
                    columns = {name: column.repeat(n) for name, column in own.items()}
                    repeated = image.repeat(n, 1, 1, 1)
                    parts.append(part.evaluate_query(self.attacked, repeated, columns, many, gradient, seed=self.seed))
            seen.append([torch.cat(columns).mean(0) for columns in zip(*parts, strict=True)])
        logits, loss, slopes = (torch.stack(columns) for columns in zip(*seen, strict=True))
        return logits, loss, slopes if gradient else query.new_empty(0)


def random_bench(bench: Bench, draws: Draws, verdict_passes: int) -> RandomBench:
    """Turn ``bench`` into that of a random model with these draws."""
    values = {field.name: getattr(bench, field.name) for field in fields(Bench)}
    return RandomBench(**values, draws=draws, verdict_passes=verdict_passes)

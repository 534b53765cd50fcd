"""Progress of a training run, computed from its metrics, for the run itself and for processes that watch its folder."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..utils.errors import InputError
from .metrics import Metrics
from .run_folder import CONFIG, METRICS, in_use

#: number of recent steps from which the speed and the time left are estimated
RECENT = 100


@dataclass(frozen=True)
class Latest:
    """The state of a run after its latest step.

    Attributes:
        step: metrics of the latest step; None before the first.
        epochs: metrics of the last step of each finished epoch.
        rates: for each of the latest ``RECENT`` steps: images, total seconds, and seconds spent waiting for images.
    """

    step: Metrics | None = None
    epochs: tuple[Metrics, ...] = ()
    rates: tuple[tuple[int, float, float], ...] = ()

    def add_step(self, step: Metrics) -> Latest:
        """Return the state of the run after one more step."""
        done = (step,) if step.test_accuracy is not None else ()
        rates = (*self.rates, (step.images, step.waited + step.seconds, step.waited))[-RECENT:]
        return replace(self, step=step, epochs=self.epochs + done, rates=rates)

    @property
    def images_per_second(self) -> float:
        return sum(images for images, _, _ in self.rates) / max(sum(seconds for _, seconds, _ in self.rates), 1e-9)

    @property
    def waiting_share(self) -> float:
        """Share of the time spent waiting for images."""
        return sum(waited for _, _, waited in self.rates) / max(sum(seconds for _, seconds, _ in self.rates), 1e-9)

    @property
    def seconds_left(self) -> float:
        """Estimated seconds of training left, without tests and validations; nan before the first step."""
        if self.step is None:
            return float("nan")
        return (self.step.steps - self.step.step) * sum(s for _, s, _ in self.rates) / len(self.rates)

    def describe(self) -> str:
        """Return a one-line description of the run's progress."""
        if self.step is None:
            return "starting"
        tested = [f", {name} {100 * value:.1f} %" for name, value in self.last_accuracies().items()]
        return (
            f"epoch {self.step.epoch:.1f}, step {self.step.step}, loss {self.step.loss:.3f}, lr {self.step.lr:g}, "
            f"{self.images_per_second:.0f} images/s{''.join(tested)}"
        )

    def last_accuracies(self) -> dict[str, float]:
        """Return the latest accuracies as fractions: "clean" on the test images, "robust" on the held-out images."""
        found = {}
        for step in self.epochs:
            if step.test_accuracy is not None:
                found["clean"] = step.test_accuracy
            if step.robust_accuracy is not None:
                found["robust"] = step.robust_accuracy
        return found

    def epoch_words(self) -> str:
        """Return a one-line description of the last finished epoch."""
        step = self.epochs[-1]
        robust = ""
        if step.robust_accuracy is not None:
            robust = f", held out: robust accuracy {100 * step.robust_accuracy:.1f} %"
        return (
            f"epoch {step.epoch:.0f} of {step.steps * step.epoch / step.step:.0f}: loss {step.loss:.3f}, "
            f"test accuracy (clean) {100 * (step.test_accuracy or 0):.1f} %{robust}, lr {step.lr:g}"
        )


class Follower:
    """Read the metrics of a run as they are written; read all of them again when a resumed run has removed lines.

    Raises:
        InputError: the folder holds no run.
    """

    def __init__(self, folder: Path):
        if not (folder / CONFIG).is_file():
            raise InputError(f"{folder} holds no run: give a folder that was the `out` of adv-train")
        self.folder, self.file, self.latest = folder, folder / METRICS, Latest()
        self.identity, self.position = 0, 0

    def read(self) -> Latest:
        """Read new lines of the metrics and return the current state of the run."""
        if not self.file.exists():
            return self.latest
        with self.file.open("rb") as file:
            status = file_identity(file)
            if status[0] != self.identity or status[1] < self.position:
                self.latest, self.identity, self.position = Latest(), status[0], 0
            file.seek(self.position)
            for line in file:
                if not line.endswith(b"\n"):  # still being written
                    break
                self.latest = self.latest.add_step(Metrics(**json.loads(line)))
                self.position += len(line)
        return self.latest

    def state(self) -> str:
        """Return "finished", "running" if a process is training in the folder, or else "stopped"."""
        step = self.latest.step
        if step is not None and step.step == step.steps:
            return "finished"
        return "running" if in_use(self.folder) else "stopped"


def file_identity(file: Any) -> tuple[int, int]:
    """Return the inode and the size in bytes of an open file; a replaced file has another inode."""
    status = os.fstat(file.fileno())
    return status.st_ino, status.st_size

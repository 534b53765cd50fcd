"""Transfer matrices of a suite: the accuracy of every model on the adversarial images of every other model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import nn

from ..evaluation.score import transfer
from ..protocols import Sweep
from ..results.images import IMAGES
from ..results.stored import RESULT
from ..utils.files import write_json
from .job import SuiteJob
from .spec import TRANSFER

FILE = "transfer.json"


def write_matrices(jobs: Sequence[SuiteJob]) -> Iterator[Path]:
    """Write a matrix for each protocol, data set and seed for which all models are finished; yield its path.

    No attack is run again, and a matrix that is newer than its evaluations is kept. Without ``images``, or with a
    single model, there are no matrices.
    """
    suite, out = jobs[0].suite, jobs[0].out
    if not suite.images or len(suite.models) < 2:
        return
    for data in suite.data:
        for seed in suite.seeds:
            members = [job for job in jobs if seed in job.seeds]
            models: dict[str, nn.Module] = {}  # loaded once for all protocols
            for attack in suite.attacks:
                if isinstance(attack, Sweep) or not attack.eps:
                    continue
                runs = [out / data / job.model / f"seed-{seed}" / attack.name for job in members]
                file = out / TRANSFER / data / f"seed-{seed}" / attack.name / FILE
                names = [job.model for job in members]
                if not all((run / RESULT).is_file() and (run / IMAGES).is_dir() for run in runs):
                    continue
                if not is_current(file, names, runs):
                    models = models or {job.model: job.load(job.load_images(data)) for job in members}
                    file.parent.mkdir(parents=True, exist_ok=True)
                    write_json(file, transfer(runs, models).to_dict())
                yield file


def is_current(file: Path, names: Sequence[str], runs: Sequence[Path]) -> bool:
    """Return True if the matrix in ``file`` has these models and is newer than each of their evaluations."""
    if not file.is_file():
        return False
    written = file.stat().st_mtime_ns
    if any((run / RESULT).stat().st_mtime_ns > written for run in runs):
        return False
    return bool(json.loads(file.read_text(encoding="utf-8"))["models"] == list(names))

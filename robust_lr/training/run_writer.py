"""Write the files of a run (metrics, weights, states) in its first process; failed writes raise a RunError."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ..config.training import Config
from ..models.checkpoint import BEST, WEIGHTS, load_tensors, save_weights, weights_hash
from ..utils.errors import InputError, RunError
from ..utils.files import write_json
from .metrics import Metrics, divergence_error
from .run_folder import METRICS, PROVENANCE
from .train_state import STATES, State, save_state

#: metrics that are written for TensorBoard
CURVES = ("loss", "accuracy", "lr", "test_accuracy", "validation_accuracy", "robust_accuracy")


class Record:
    """Writer of the files of a run in ``folder``; use it inside the context of ``open``.

    Attributes:
        saved: time of the monotonic clock when the last state was saved, or when the files were opened.
    """

    def __init__(self, config: Config, folder: Path, spec: Mapping[str, Any], provenance: Mapping[str, Any]):
        self.config, self.folder, self.spec, self.provenance = config, folder, spec, provenance
        self.about = {"data": config.data.name, "attack": config.attack.name, "seed": config.seed}
        self.board: Any = None

    @contextmanager
    def open(self, step: int) -> Iterator[Record]:
        """Open the files for the steps after ``step``."""
        self.last_saved = step
        with ExitStack() as stack:
            with self.name_write_errors(step):
                # unbuffered: after a failed write on a full disk, closing the file must not write the line after all
                self.metrics = stack.enter_context(FileIO(self.folder / METRICS, "a"))
                if self.config.output.tensorboard:
                    self.board = summary_writer()(str(self.folder / "tensorboard"), purge_step=step + 1)
                    stack.callback(self.board.close)
            self.saved = time.monotonic()
            yield self

    def add(self, step: Metrics, best: nn.Module | None = None) -> None:
        """Write the metrics of a step, and the weights of ``best`` if this step has the best robust accuracy so far."""
        values = {key: value for key, value in asdict(step).items() if value is not None}
        with self.name_write_errors(step.step):
            line = (json.dumps(values) + "\n").encode()
            if self.metrics.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if self.board is not None:
                for name in CURVES:
                    if name in values:
                        self.board.add_scalar(name, values[name], step.step)
            if best is not None:
                about = {**self.about, "epoch": step.epoch, "robust_accuracy": step.robust_accuracy}
                save_weights(self.folder / BEST, best, self.spec, about)

    def save(self, step: Metrics, state: Mapping[str, Tensor], kept: nn.Module) -> None:
        """Write the weights of ``kept``, the provenance and ``state``.

        Raises:
            RunError: a value of ``state`` is not finite; nothing is written then.
        """
        for name, tensor in state.items():
            if not tensor.isfinite().all():
                raise divergence_error(f"{name} is not finite", step.step, step.steps, self.config.train)
        with self.name_write_errors(step.step):
            os.fsync(self.metrics.fileno())
            save_weights(self.folder / WEIGHTS, kept, self.spec, {**self.about, "epoch": step.epoch})
            finished = step.step == step.steps
            progress = {"step": step.step, "steps": step.steps, "finished": finished}
            write_json(self.folder / PROVENANCE, {**self.provenance, **progress, "weights_sha256": weights_hash(kept)})
            # the state is written last: a run that dies before repeats its steps and writes everything again
            data = {"data_sha256": self.provenance["data_sha256"]}
            save_state(self.folder, step.step, state, data, keep=self.config.output.keep)
        self.last_saved, self.saved = step.step, time.monotonic()

    @contextmanager
    def name_write_errors(self, step: int) -> Iterator[None]:
        """Turn an OSError into a RunError that names the folder, the step and the state that is kept."""
        try:
            yield
        except OSError as error:
            kept = f"the state after step {self.last_saved} is kept" if self.last_saved else "no state was saved yet"
            raise RunError(
                f"{self.folder}: {error.strerror or error}, at step {step}; {kept}; free space, then continue with "
                "`resume`"
            ) from error


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer, average: AveragedModel | None) -> dict[str, Tensor]:
    """Return the tensors of a training state by name: model, momentum and average."""
    momentum = {f"momentum/{i}": s["momentum_buffer"] for i, s in optimizer.state_dict()["state"].items()}
    mean = {} if average is None else {f"average/{name}": tensor for name, tensor in average.state_dict().items()}
    return {**{f"model/{name}": tensor for name, tensor in model.state_dict().items()}, **momentum, **mean}


def restore_state(
    state: State | None,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: AveragedModel | None,
    folder: Path,
) -> int:
    """Load the tensors of ``state_of`` into the objects; return the number of steps done, 0 without a state."""
    if state is None:
        return 0
    tensors, about = state
    load_tensors(model, _select_part(tensors, "model"), folder / STATES)
    if average is not None:
        load_tensors(average, _select_part(tensors, "average"), folder / STATES)
    momentum = {int(i): {"momentum_buffer": tensor} for i, tensor in _select_part(tensors, "momentum").items()}
    optimizer.load_state_dict({**optimizer.state_dict(), "state": momentum})
    return int(about["step"])


def _select_part(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    prefix = f"{name}/"
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def summary_writer() -> Any:
    """Import TensorBoard's writer; InputError if it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise InputError(
            "output.tensorboard = true: the package tensorboard is not installed; pip install tensorboard, or set it "
            "to false"
        ) from None
    return SummaryWriter

"""Replay the steps of an attack as CUDA graphs: the host launches one graph instead of hundreds of kernels.

Off by default. ROBUST_LR_CUDA_GRAPHS=1 switches it on, for deterministic models on a GPU.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..utils.errors import InputError, RunError
from .batch_state import Rows

VARIABLE = "ROBUST_LR_CUDA_GRAPHS"

#: steps with rows of a new size before one is recorded: libraries choose their algorithms in the first ones
WARM_UPS = 3

#: recorded steps that are kept, each with memory of its own; rows of further sizes take their steps without
MAX_RECORDINGS = 8

Step = Callable[[Rows], Rows]
Key = tuple[tuple[str, torch.Size, torch.dtype], ...]


def are_graphs_wanted(device: torch.device) -> bool:
    """Return True if the environment asks for CUDA graphs and ``device`` has them."""
    wanted = os.environ.get(VARIABLE, "")
    if wanted not in ("", "0", "1"):
        raise InputError(f"{VARIABLE} = {wanted!r}: must be 1, for CUDA graphs, or 0")
    return wanted == "1" and device.type == "cuda"


@dataclass(frozen=True)
class Recording:
    """A step whose kernels read ``inputs`` and write ``outputs`` whenever ``replay`` is called."""

    inputs: Rows
    outputs: Rows
    replay: Callable[[], None]

    def __call__(self, rows: Rows) -> Rows:
        for name, column in rows.items():
            self.inputs[name].copy_(column)
        self.replay()
        return {name: column.clone() for name, column in self.outputs.items()}


def record_cuda_graph(step: Step, rows: Rows) -> Recording:
    """Record the kernels that ``step`` launches for rows like ``rows``.

    Raises:
        RunError: the step does something that a graph cannot hold, such as waiting for the GPU.
    """
    inputs = {name: column.clone() for name, column in rows.items()}
    graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    try:
        stream.wait_stream(current)
        with torch.cuda.stream(stream):  # libraries prepare themselves for each stream
            step(inputs)
        current.wait_stream(stream)
        with torch.cuda.graph(graph, stream=stream):
            outputs = step(inputs)
    except (RuntimeError, RunError) as error:
        raise RunError(f"a step of the attack cannot be a CUDA graph ({error}); unset {VARIABLE}") from error
    return Recording(inputs, outputs, graph.replay)


class GraphedStep:
    """Takes the steps of one attack: the first ones as they are, later ones by replaying what was recorded.

    Args:
        step: a function of rows that depends on nothing else, and reads no tensor on the host.
        record: records one step for rows of one size.
    """

    def __init__(self, step: Step, record: Callable[[Step, Rows], Recording]):
        self.step, self.record = step, record
        self.taken: Counter[Key] = Counter()
        self.recordings: dict[Key, Recording] = {}

    def __call__(self, rows: Rows) -> Rows:
        key = tuple((name, column.shape, column.dtype) for name, column in rows.items())
        if key not in self.recordings:
            self.taken[key] += 1
            if self.taken[key] <= WARM_UPS or len(self.recordings) == MAX_RECORDINGS:
                return self.step(rows)
            self.recordings[key] = self.record(self.step, rows)
        return self.recordings[key](rows)


class DelayedLook:
    """Tells which rows are decided, as of the look before, so that the host need not wait for the GPU.

    Decided rows stay in the batch a few steps longer, which changes nothing about them.
    """

    def __init__(self) -> None:
        self.before: tuple[Tensor, Tensor, torch.cuda.Event | None] | None = None

    def look(self, decided: Tensor, numbers: Tensor) -> Tensor:
        """Return which rows were decided at the look before, [N] bool on the CPU, and begin to copy ``decided`` [N].

        ``numbers`` [N], on the CPU, are the rows' own: rows join and leave between looks.
        """
        found = torch.zeros(len(numbers), dtype=torch.bool)
        if self.before is not None:
            flags, known, event = self.before
            if event is not None:
                event.synchronize()
            found = torch.isin(numbers, known[flags])
        if decided.device.type == "cuda":
            flags = torch.empty(decided.shape, dtype=torch.bool, pin_memory=True)
            flags.copy_(decided, non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
            self.before = flags, numbers.clone(), event
        else:
            self.before = decided.clone(), numbers.clone(), None
        return found

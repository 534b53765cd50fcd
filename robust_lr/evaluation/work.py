"""The cost of a model's pass, counted rather than timed, so that budgets are the same in every run."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..models.cost import profile
from ..models.resnet import ResNet

#: nominal work per second of one processor core (AMD EPYC; right within a factor of two for the networks of the zoo)
MULTIPLY_ADDS, VALUES, CALLS = 1.2e10, 6e8, 1e5

#: nominal seconds of a pass that cannot be counted
UNCOUNTED = 1e-3

#: speed of other devices relative to a processor core
FASTER = {"cuda": 50.0}

#: factor by which processors are slower in 16 bits
SLOWER_IN_HALF = 4.0


class Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Count multiply-adds, values written, values written in 16 bits, and calls of operators."""

    def __init__(self) -> None:
        from torch.utils.flop_counter import flop_registry  # imports triton, which takes a tenth of a second

        super().__init__()  # type: ignore[no-untyped-call]
        self.registry = flop_registry
        self.multiply_adds = self.values = self.halves = self.calls = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Leave PyTorch's compiler alone, whose import takes seconds."""
        return False

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), options: dict[str, Any] | None = None
    ) -> Any:
        result = function(*arguments, **(options or {}))
        self.calls += 1
        leaves = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.values += sum(leaf.numel() for leaf in leaves)
        self.halves += sum(leaf.numel() for leaf in leaves if leaf.dtype in (torch.float16, torch.bfloat16))
        if (count := self.registry.get(getattr(function, "_overloadpacket", None))) is not None:
            self.multiply_adds += count(*arguments, **(options or {}), out_val=result) // 2
        return result


def seconds_of_a_pass(model: nn.Module, x: Tensor) -> float:
    """Return the nominal seconds of a forward pass of one image, counted on the batch ``x``."""
    try:
        with torch.no_grad(), Counter() as counter:
            model(x)
    except Exception:  # compiled or scripted code that cannot be counted
        return UNCOUNTED
    multiply_adds = counter.multiply_adds
    if isinstance(model, ResNet):  # the counter does not know the operators of our networks
        multiply_adds = max(multiply_adds, profile(model, x).multiply_adds)
    nominal = multiply_adds / MULTIPLY_ADDS + counter.values / VALUES + counter.calls / CALLS
    if 2 * counter.halves > counter.values and x.device.type == "cpu":
        nominal *= SLOWER_IN_HALF
    return float(nominal) / len(x) / FASTER.get(x.device.type, 1.0)

"""Sources of directions for probes: the model's gradient, averages, finite differences, and gradients of its parts.

An oracle answers a batch of queries with the model's logits (None if it did not query the model itself), the objective
and a direction that should raise it. A direction need not be the gradient: if a defense hides the gradient, other
directions still work.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..attacks.losses import Objective
from ..attacks.stepwise import evaluate_objective
from ..utils.rng import PROBE, uniform

#: distance between the draw numbers of one probe and those of the next
DRAWS_OF_A_PROBE = 2**12


@dataclass(frozen=True, eq=False)
class Queries:
    """A batch of queries.

    Attributes:
        x, ids: images [n, C, H, W] and their ids.
        labels, targets: classes to move away from and towards.
        draw: together with the ids, keys random numbers.
    """

    x: Tensor
    ids: Tensor
    labels: Tensor
    targets: Tensor | None
    draw: int

    def repeat_for(self, copies: Tensor) -> Queries:
        """Return queries for ``copies`` [n * k, C, H, W], which hold all images k times, one block after the other."""
        k = len(copies) // len(self.x)
        targets = None if self.targets is None else self.targets.repeat(k)
        return Queries(copies, self.ids.repeat(k), self.labels.repeat(k), targets, self.draw)


Answer = tuple[Tensor | None, Tensor, Tensor]


@dataclass(frozen=True)
class Oracle:
    """A source of directions: ``ask`` answers queries, and ``cost`` is the number of forward passes per image."""

    ask: Callable[[Queries], Answer]
    cost: float


def logits_of(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(x)
    return logits


def gradient_oracle(model: nn.Module, objective: Objective) -> Oracle:
    """Return the model's own gradient."""

    def ask(q: Queries) -> Answer:
        logits, loss, direction = evaluate_objective(model, q.x, q.labels, q.targets, objective)
        return logits, loss, direction.nan_to_num(0, 0, 0)

    return Oracle(ask, 3)


def smoothed_gradient_oracle(model: nn.Module, objective: Objective, radius: float, copies: int, seed: int) -> Oracle:
    """Return the mean of normalized gradients around the query; a rough loss surface is smooth on average."""

    def ask(q: Queries) -> Answer:
        logits = logits_of(model, q.x)
        total = torch.zeros_like(q.x)
        for number in range(copies):
            noise = 2 * shared_noise(seed, q, q.x.shape[1:], q.draw * copies + number) - 1
            near = (q.x + radius * noise).clamp(0, 1)
            direction = evaluate_objective(model, near, q.labels, q.targets, objective)[2].nan_to_num(0, 0, 0)
            total += direction / direction.abs().mean((1, 2, 3), keepdim=True).clamp_min(torch.finfo(q.x.dtype).tiny)
        return logits, objective(logits, q.labels, q.targets), total

    return Oracle(ask, 1 + 3 * copies)


def finite_difference_oracle(model: nn.Module, objective: Objective, radius: float, pairs: int, seed: int) -> Oracle:
    """Return finite differences along random patches of pixels in antithetic pairs (Spall 1992; Ilyas et al. 2018)."""

    def ask(q: Queries) -> Answer:
        logits = logits_of(model, q.x)
        total = torch.zeros_like(q.x)
        for number in range(pairs):
            side = (1, 2, 4)[number % 3]
            shape = (q.x.shape[1], -(-q.x.shape[2] // side), -(-q.x.shape[3] // side))
            signs = (shared_noise(seed, q, shape, q.draw * pairs + number) < 0.5).to(q.x.dtype) * 2 - 1
            signs = signs.repeat_interleave(side, 2).repeat_interleave(side, 3)
            signs = signs[:, :, : q.x.shape[2], : q.x.shape[3]]
            both = torch.cat([(q.x + sign * radius * signs).clamp(0, 1) for sign in (1, -1)])
            asked = q.repeat_for(both)
            up, down = objective(logits_of(model, both), asked.labels, asked.targets).chunk(2)
            total += (up - down).nan_to_num(0, 0, 0).view(-1, 1, 1, 1) * signs
        return logits, objective(logits, q.labels, q.targets), total

    return Oracle(ask, 1 + 2 * pairs)


def shared_noise(seed: int, q: Queries, shape: Sequence[int], draw: int) -> Tensor:
    """Draw uniform numbers [1, *shape] that all queries share, which is cheaper than numbers for each query."""
    return uniform(seed, PROBE, torch.zeros_like(q.ids[:1]), shape, draw)


def directionless_oracle(model: nn.Module, objective: Objective) -> Oracle:
    """Return no direction, for attacks that need none."""

    def ask(q: Queries) -> Answer:
        logits = logits_of(model, q.x)
        return logits, objective(logits, q.labels, q.targets), q.x.new_empty(0)

    return Oracle(ask, 1)


def straight_through_oracle(model: nn.Module, objective: Objective) -> Oracle:
    """Return the gradient with the identity in place of rounding and of operations that hide gradients.

    See ``StraightThrough`` (BPDA, Athalye et al. 2018).
    """

    def ask(q: Queries) -> Answer:
        with (
            warnings.catch_warnings(action="ignore"),
            without_backward_hooks(model),
            differentiate_custom_functions(),
            StraightThrough(),
        ):
            logits, loss, direction = evaluate_objective(model, q.x, q.labels, q.targets, objective)
        return logits, loss, direction.nan_to_num(0, 0, 0)

    return Oracle(ask, 3)


class StraightThrough(TorchFunctionMode):
    """Give rounding, clipping and detaching the gradient of the identity; ignore ``no_grad`` and hooks on tensors."""

    def __torch_function__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), options: dict[str, Any] | None = None
    ) -> Any:
        name, options = getattr(function, "__name__", ""), options or {}
        first = arguments[0] if arguments else None
        if name in ("detach", "clone_detached") or (name == "__get__" and function is torch.Tensor.data.__get__):  # type: ignore[attr-defined]
            return first
        if name == "register_hook":
            return None
        if name == "_set_grad_enabled" and first is False:
            return None
        result = function(*arguments, **options)
        if name in STEPS and isinstance(first, Tensor) and isinstance(result, Tensor) and first.shape == result.shape:
            return first + (result - first).detach()
        return result


#: functions whose gradient is zero on all or much of their domain
STEPS = ("round", "floor", "ceil", "trunc", "sign", "clamp", "clip", "hardtanh", "clamp_min", "clamp_max", "fix")


@contextmanager
def differentiate_custom_functions() -> Iterator[None]:
    """Differentiate the model's custom autograd functions through their forward pass, ignoring their ``backward``."""
    function = torch.autograd.Function
    original = function.__dict__["apply"]

    class Context:
        """Stand in for the context that a forward pass writes to."""

        def __getattr__(self, name: str) -> Any:
            return lambda *arguments, **options: None

    def apply(cls: Any, *arguments: Any, **options: Any) -> Any:
        own = cls.__module__.startswith(("torch.", "robust_lr."))
        combined = cls.setup_context is not function.setup_context
        if own:
            return original.__get__(None, cls)(*arguments, **options)
        result = cls.forward(*arguments) if combined else cls.forward(Context(), *arguments)
        inputs = [a for a in arguments if isinstance(a, Tensor) and a.requires_grad]
        if isinstance(result, Tensor) and inputs and not result.requires_grad:
            same = next((a for a in inputs if a.shape == result.shape), None)
            return result if same is None else same + (result - same).detach()
        return result

    function.apply = classmethod(apply)
    try:
        yield
    finally:
        function.apply = original


@contextmanager
def without_backward_hooks(model: nn.Module) -> Iterator[None]:
    """Remove the backward hooks of all modules temporarily."""
    kept = [(m, m._backward_hooks, m._backward_pre_hooks) for m in model.modules()]
    try:
        for module, hooks, pre_hooks in kept:
            module._backward_hooks, module._backward_pre_hooks = type(hooks)(), type(pre_hooks)()
        yield
    finally:
        for module, hooks, pre_hooks in kept:
            module._backward_hooks, module._backward_pre_hooks = hooks, pre_hooks


def inner_network_oracle(model: nn.Module, objective: Objective, name: str) -> Oracle:
    """Return the gradient of a network inside the model with respect to its input, as if it received the image itself.

    Whatever comes before or after that network is ignored; the model's own logits decide whether an attack succeeds.
    """
    part = model.get_submodule(name)

    def ask(q: Queries) -> Answer:
        received: list[Tensor] = []

        def receive(_: nn.Module, arguments: tuple[Any, ...]) -> None:
            received.append(arguments[0].detach().clone())

        handle = part.register_forward_pre_hook(receive)
        try:
            logits = logits_of(model, q.x)
        finally:
            handle.remove()
        total, loss = torch.zeros_like(q.x), None
        for x in [u for u in received if u.shape == q.x.shape][-3:]:
            _, loss, direction = evaluate_objective(part, x.to(q.x.dtype), q.labels, q.targets, objective)
            total += direction.nan_to_num(0, 0, 0)
        return logits, objective(logits, q.labels, q.targets) if loss is None else loss, total

    return Oracle(ask, 4)


def layer_input_oracle(model: nn.Module, objective: Objective, name: str) -> Oracle:
    """Return the gradient with respect to the input of a layer, as if everything before it were the identity."""
    part = model.get_submodule(name)

    def ask(q: Queries) -> Answer:
        received: list[Tensor] = []

        def cut(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            received.append(arguments[0].detach().requires_grad_())
            return (received[-1], *arguments[1:])

        handle = part.register_forward_pre_hook(cut)
        try:
            with torch.enable_grad():
                logits = model(q.x)
                loss = objective(logits, q.labels, q.targets)
                shaped = [u for u in received if u.shape == q.x.shape] or received[:1]
                found = torch.autograd.grad(loss.sum(), shaped, allow_unused=True)
        finally:
            handle.remove()
        total = torch.zeros_like(q.x)
        for direction in found:
            total += 0 if direction is None else fit_to_image(direction.nan_to_num(0, 0, 0), q.x.shape)
        return logits.detach(), loss.detach(), total

    return Oracle(ask, 3)


def fit_to_image(direction: Tensor, shape: Sequence[int]) -> Tensor:
    """Convert a direction for an encoded image into one for the image: sum extra channels, resize, reshape."""
    if direction.numel() == torch.Size(shape).numel():
        return direction.reshape(shape)
    if direction.ndim != 4:
        raise ValueError(f"{tuple(direction.shape)} is not an encoding of {tuple(shape)}")
    channels = shape[1] if direction.shape[1] % shape[1] == 0 else 1
    summed = direction.view(len(direction), channels, -1, *direction.shape[2:]).sum(2)
    return F.interpolate(summed, size=tuple(shape[2:]), mode="nearest").expand(*shape)


@dataclass(frozen=True)
class Parts:
    """Names of modules inside a model.

    Attributes:
        networks: whole networks from images to logits.
        layers: the last layer that receives images, or else the first layer with weights, which receives an encoding.
    """

    networks: tuple[str, ...]
    layers: tuple[str, ...]


#: maximum number of networks inside a model that are attacked
MAX_NETWORKS = 3


def find_parts(model: nn.Module, x: Tensor) -> Parts:
    """Find the parts of ``model`` whose input has the shape of the images ``x``."""
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        return Parts((), ())  # scripted modules take no hooks
    n_classes = logits_of(model, x[:1]).shape[1]
    networks: list[str] = []
    layers: list[str] = []
    coded: list[str] = []

    def record_calls(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
            image = bool(arguments) and isinstance(arguments[0], Tensor) and arguments[0].shape == x.shape
            if not image and arguments and isinstance(arguments[0], Tensor) and len(arguments[0]) == len(x):
                coded.extend([name] * any(True for _ in module.parameters(recurse=False)))
            if image and isinstance(output, Tensor):
                if output.shape == (len(x), n_classes):
                    networks.append(name)
                elif output.shape != x.shape and not any(True for _ in module.children()):
                    layers.append(name)

        return hook

    handles = [module.register_forward_hook(record_calls(name)) for name, module in model.named_modules() if name]
    try:
        logits_of(model, x)
    finally:
        for handle in handles:
            handle.remove()
    outer_first = sorted(dict.fromkeys(networks), key=lambda name: name.count("."))
    return Parts(tuple(outer_first[:MAX_NETWORKS]), (tuple(dict.fromkeys(layers)) or tuple(coded[:1]))[-1:])

"""The attack on training batches: in eval mode, with gradients with respect to the images only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attacks.losses import Objective
from ..config.training import Config
from ..models.folding import fold, folded_state
from ..models.resnet import ResNet
from ..utils.contexts import fp32, frozen
from ..utils.rng import CHOICE, uniform


class Attacker:
    """Generate adversarial images for training, as set in ``config.attack``, ``config.train`` and ``config.compute``.

    Networks of this package are attacked through a folded copy that is updated to the current weights. Other networks
    are attacked directly and frozen during the attack.
    """

    def __init__(self, model: nn.Module, config: Config, num_classes: int):
        self.model, self.config, self.num_classes = model, config, num_classes
        protocol, compiled = config.attack, config.compute.compile
        self.idle = protocol.steps == 0 and protocol.start == "clean"
        self.folded = fold(model) if isinstance(model, ResNet) and protocol.steps else None
        self.attacked: nn.Module = model if self.folded is None else self.folded
        if compiled != "off":
            self.attacked = torch.compile(self.attacked, mode=compiled)  # type: ignore[assignment]

    def __call__(self, x: Tensor, labels: Tensor, ids: Tensor, epoch: int, scale: float = 1.0) -> Tensor:
        """Return adversarial images for ``x``.

        Args:
            x: clean images, [N, C, H, W] float32 in [0, 1].
            labels, ids: labels and image ids, [N] int64.
            epoch: determines the starts and targets, with the seed and the ids.
            scale: factor of eps and the step size during warmup, in (0, 1].
        """
        if self.idle or not len(x):
            return x
        protocol, train, seed = self.config.attack, self.config.train, self.config.seed
        if scale < 1:
            protocol = replace(protocol, eps=scale * protocol.eps, step_size=scale * protocol.step_size)
        with self.prepare_attacked_model(), attack_precision(x.device, self.config.compute.attack_precision):
            loss = self.divergence_objective(x) if train.loss == "trades" else None
            goals = protocol.goals(self.attacked, x, labels, ids, self.num_classes, seed=seed, draw=epoch)
            start = protocol.starts(x, ids, seed=seed, draw=epoch)
            if train.clean_start:
                clean = uniform(seed, CHOICE, ids, (1,), epoch)[:, 0] < train.clean_start
                start = torch.where(clean.view(-1, 1, 1, 1), x, start)
            return protocol.perturb(self.attacked, x, labels, goals, ids, seed=seed, draw=epoch, start=start, loss=loss)

    @torch.no_grad()
    def divergence_objective(self, x: Tensor) -> Objective:
        """Return the objective of TRADES: KL(prediction for ``x`` || prediction for the iterate), up to a constant."""
        predicted = self.attacked(x).softmax(1)
        return lambda logits, labels, targets: F.cross_entropy(logits, predicted, reduction="none")

    @contextmanager
    def prepare_attacked_model(self) -> Iterator[None]:
        """Update the folded copy to the model's weights, or freeze the model."""
        if self.folded is not None and isinstance(self.model, ResNet):
            self.folded.load_state_dict(folded_state(self.model))
            yield
        else:
            with frozen(self.model):
                yield


@contextmanager
def attack_precision(device: torch.device, name: str) -> Iterator[None]:
    """Set the arithmetic of the attack: exact "fp32", or "bf16" by autocast."""
    with fp32(device), torch.autocast(device.type, dtype=torch.bfloat16, enabled=name == "bf16"):
        yield

"""Adversarial training (paper appendix): every batch is attacked in eval mode, then learned from in train mode.

Regular training is the same loop with an attack of zero steps. Order, augmentation, targets and starts are keyed by
(seed, epoch, image id), so a state is weights, momentum and the number of steps, and resuming is exact to the bit.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attacks.targets import check_classes
from .augment import AUGMENTATIONS, TRANSFORMS
from .config import Config, TrainConfig
from .contexts import fp32, frozen
from .dataset import Dataset
from .errors import InputError, RunError
from .lazy import LazyDataset
from .loader import batches, shuffled
from .models.fold import fold, folded_state
from .models.resnet import ResNet
from .perturb import goals, perturb
from .protocols import PGD


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """One step of training.

    Attributes:
        step, steps: steps done, and those of the whole run.
        epoch: epochs done, with a fraction.
        loss: mean cross-entropy of the attacked batch, in train mode.
        accuracy: on the attacked batch, a fraction.
        lr: of this step.
        seconds: of this step, attack included.
        images: in the batch.
        test_accuracy: on the clean test images, a fraction, after the last step of an epoch.
    """

    step: int
    steps: int
    epoch: float
    loss: float
    accuracy: float
    lr: float
    seconds: float
    images: int
    test_accuracy: float | None = None


def learning_rate(train: TrainConfig, step: int, per_epoch: int) -> float:
    """Linear warm-up, then a tenth after each milestone (paper appendix); ``step`` counts from 0."""
    warmup = train.warmup_epochs * per_epoch
    if step + 1 < warmup:
        return train.lr * (step + 1) / warmup
    return train.lr * 0.1 ** sum(step >= milestone * per_epoch for milestone in train.milestones)


def sgd(model: nn.Module, train: TrainConfig) -> torch.optim.SGD:
    """The optimizer of the paper; its learning rate is set before each step."""
    return torch.optim.SGD(model.parameters(), lr=train.lr, momentum=train.momentum, weight_decay=train.weight_decay)


def check(data: Dataset, config: Config) -> None:
    """InputError if ``config`` cannot be trained on ``data``."""
    if len(data) < config.train.batch_size:
        raise InputError(f"train.batch_size = {config.train.batch_size}: there are only {len(data)} training images")
    if config.attack.targeted:
        check_classes(data.num_classes)
    if config.data.augment in TRANSFORMS and not isinstance(data, LazyDataset):
        raise InputError(f"data.augment = {config.data.augment!r} is for image files, {data.name} is held in memory")


def diverged(what: str, step: int, steps: int, train: TrainConfig) -> RunError:
    return RunError(
        f"{what} at step {step} of {steps}: try a learning rate below train.lr = {train.lr} or a longer "
        f"train.warmup_epochs than {train.warmup_epochs:g}"
    )


def adversarial_train(
    model: nn.Module,
    data: Dataset,
    config: Config,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    start_step: int = 0,
) -> Iterator[Metrics]:
    """Train ``model`` in place, on the device that it is on; yields after every step.

    Args:
        model: pixels in [0, 1] -> logits [N, data.num_classes]. It is left in train mode.
        data: training images.
        config: ``attack``, ``train``, ``data.augment`` and ``seed`` count here.
        optimizer: by default ``sgd(model, config.train)``.
        start_step: steps already done, when a run is resumed.

    Raises:
        InputError: fewer images than a batch holds, one class for a targeted attack, an augmentation that needs files,
            or logits that do not fit the classes.
        RunError: a loss that is not finite; the step is not taken.
    """
    check(data, config)
    train, seed = config.train, config.seed
    optimizer = optimizer or sgd(model, train)
    per_epoch = len(data) // train.batch_size
    steps = train.epochs * per_epoch
    device = next(model.parameters()).device
    attack = Attacker(model, config.attack, data.num_classes, seed)
    augment = AUGMENTATIONS[config.data.augment]
    key = seed if config.data.augment in TRANSFORMS else None

    for epoch in range(start_step // per_epoch, train.epochs):
        order = shuffled(data, train.batch_size, seed=seed, epoch=epoch)
        done = max(0, start_step - epoch * per_epoch)
        loaded = batches(data, order[done:], workers=config.data.workers, seed=key, epoch=epoch)
        for step, (images, labels, ids) in enumerate(loaded, start=epoch * per_epoch + done):
            began = time.perf_counter()
            x = augment(images, ids, seed, epoch).to(device, non_blocking=True)
            y = labels.to(device, non_blocking=True)
            x = attack(x, y, ids.to(device), epoch)
            lr = learning_rate(train, step, per_epoch)
            for group in optimizer.param_groups:
                group["lr"] = lr
            model.train()
            logits = model(x)
            if logits.shape != (len(y), data.num_classes):
                raise InputError(
                    f"the model returns {tuple(logits.shape)} for {len(y)} images; logits [{len(y)}, "
                    f"{data.num_classes}] are needed, because the data set has {data.num_classes} classes"
                )
            loss = F.cross_entropy(logits, y)
            if not torch.isfinite(loss):
                raise diverged(f"the loss became {loss.item()}", step + 1, steps, train)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            yield Metrics(
                step=step + 1,
                steps=steps,
                epoch=(step + 1) / per_epoch,
                loss=loss.item(),
                accuracy=(logits.detach().argmax(1) == y).float().mean().item(),
                lr=lr,
                seconds=time.perf_counter() - began,
                images=len(y),
            )


class Attacker:
    """Attacks training batches: the network in eval mode, gradients by the image alone, the network left untouched.

    Our networks are attacked through a folded copy that follows the weights; others in place, frozen meanwhile.
    """

    def __init__(self, model: nn.Module, protocol: PGD, num_classes: int, seed: int):
        self.model, self.protocol, self.num_classes, self.seed = model, protocol, num_classes, seed
        self.folded = fold(model) if isinstance(model, ResNet) and protocol.steps else None

    def __call__(self, x: Tensor, labels: Tensor, ids: Tensor, epoch: int) -> Tensor:
        """Adversarial images for ``x`` [N, C, H, W], with starts and targets of this epoch."""
        if self.protocol.steps == 0 and self.protocol.start == "clean":
            return x
        if self.folded is not None and isinstance(self.model, ResNet):
            self.folded.load_state_dict(folded_state(self.model))
            return self.attack(self.folded, x, labels, ids, epoch)
        with frozen(self.model) as model:
            return self.attack(model, x, labels, ids, epoch)

    def attack(self, model: nn.Module, x: Tensor, labels: Tensor, ids: Tensor, epoch: int) -> Tensor:
        with fp32(x.device):
            aims = goals(self.protocol, model, x, labels, ids, self.num_classes, seed=self.seed, draw=epoch)
            return perturb(self.protocol, model, x, labels, aims, ids, seed=self.seed, draw=epoch)

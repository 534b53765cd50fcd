"""Adversarial training (paper appendix): each batch is attacked in eval mode, then the loss is computed in train mode.

Regular training is the same loop with an attack of zero steps. Order, augmentation, targets and starts are keyed by
(seed, epoch, image id). A training state is therefore only weights, momentum and the number of steps; a resumed run is
bit-identical, and the attack on an image does not depend on the number of processes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..attacks.targets import check_classes
from ..config.sections import TrainConfig
from ..config.training import Config
from ..data.augmentation import AUGMENTATIONS, TRANSFORMS
from ..data.dataset import Batch, Dataset
from ..data.encoded import LazyDataset
from ..data.loader import Order, shuffle_positions, stream
from ..utils.contexts import device_of, fp32
from ..utils.errors import InputError, RunError
from .adversary import Attacker
from .distributed import Group, average_buffers, distribute, settle_buckets, skip_gradient_averaging
from .metrics import Metrics, divergence_error
from .schedule import attack_scale, learning_rate


def make_optimizer(model: nn.Module, train: TrainConfig) -> torch.optim.SGD:
    """Create the paper's optimizer, SGD with momentum; the learning rate is set before each step."""
    return torch.optim.SGD(model.parameters(), lr=train.lr, momentum=train.momentum, weight_decay=train.weight_decay)


def moving_average(model: nn.Module, train: TrainConfig) -> AveragedModel | None:
    """Create the exponential moving average of weights and running statistics; None if ``train.ema`` is 0."""
    if not train.ema:
        return None
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(train.ema), use_buffers=True)  # type: ignore[no-untyped-call]


def check_trainable(data: Dataset, config: Config) -> None:
    """Raise an InputError unless ``data`` fit ``config``: batch size, number of classes, augmentation."""
    if len(data) < config.train.batch_size:
        raise InputError(
            f"train.batch_size = {config.train.batch_size}: there are only {len(data)} training images; set it lower"
        )
    if config.attack.targeted:
        check_classes(data.num_classes)
    if config.data.augment in TRANSFORMS and not isinstance(data, LazyDataset):
        raise InputError(
            f"data.augment = {config.data.augment!r} needs image files, but {data.name} is held in memory: choose "
            f"another of {', '.join(AUGMENTATIONS)}"
        )


def micro_batches(config: Config, size: int) -> int:
    """Return the number of micro-batches per step in each of ``size`` processes.

    Raises:
        InputError: a micro-batch would be too small for batch norm.
    """
    images, most = config.train.batch_size, config.compute.micro_batch
    count = -(-images // (size * most)) if most else 1
    if images < 2 * size * count:
        split = f" and compute.micro_batch = {most}" if most else ""
        raise InputError(
            f"train.batch_size = {images} on {size} processes{split}: batch norm needs at least 2 images in each pass; "
            "use a larger batch or fewer processes"
        )
    return count


def adversarial_train(
    model: nn.Module,
    data: Dataset,
    config: Config,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    start_step: int = 0,
    average: AveragedModel | None = None,
    group: Group | None = None,
) -> Iterator[Metrics]:
    """Train ``model`` in place, on its device; yield metrics after every step.

    Args:
        model: maps pixels [N, C, H, W] in [0, 1] to logits [N, data.num_classes]. It is left in train mode.
        data: training images.
        config: this function reads ``attack``, ``train``, ``compute``, ``data.augment``, ``data.workers``,
            ``data.unreadable`` and ``seed``.
        optimizer: by default ``make_optimizer(model, config.train)``.
        start_step: number of steps already done, when resuming a run.
        average: ``moving_average(model, config.train)``, updated after every step.
        group: processes that train together, all starting from the same weights.

    Raises:
        InputError: fewer images than one batch, a batch too small for the processes, a targeted attack on one class,
            an augmentation that needs image files, or logits of the wrong shape.
        RunError: the loss is not finite; that step is not taken.
    """
    check_trainable(data, config)
    train, group = config.train, group or Group()
    parts = micro_batches(config, group.size)
    optimizer = optimizer or make_optimizer(model, train)
    per_epoch = len(data) // train.batch_size
    steps = train.epochs * per_epoch
    device = device_of(model)
    attack = Attacker(model, config, data.num_classes)
    network = distribute(model, group, synchronize=config.compute.sync_batchnorm, compiled=config.compute.compile)
    part = train.batch_size // group.size // parts
    settle_buckets(network, model, torch.zeros(part, *data.image_shape, device=device))
    augment = AUGMENTATIONS[config.data.augment]
    clean = group.share(left_clean(train)).to(device)
    loaded = stream(
        data,
        yield_orders(data, config, group, start_step),
        workers=config.data.workers,
        seed=config.seed if config.data.augment in TRANSFORMS else None,
        skip=config.data.unreadable == "skip",
        device=device,
    )
    ready = time.perf_counter()
    for step, (x, y, ids) in enumerate(load_on_all(loaded, group, parts, start_step), start=start_step):
        began = time.perf_counter()
        epoch, scale = step // per_epoch, attack_scale(train, step, per_epoch)
        lr = learning_rate(train, step, per_epoch)
        for parameters in optimizer.param_groups:
            parameters["lr"] = lr
        x = augment(x, ids, config.seed, epoch)
        count = group.total(len(ids)) if config.data.unreadable == "skip" else train.batch_size
        totals = torch.zeros(2, dtype=torch.float64, device=device)  # loss and accuracy, summed over micro-batches
        optimizer.zero_grad()
        split = (tensor.tensor_split(parts) for tensor in (x, y, ids, clean[: len(ids)]))
        for part, (some, labels, keys, spared) in enumerate(zip(*split, strict=True), start=1):
            weight = len(some) / count
            if train.mix:
                x_adv = some.clone()
                x_adv[~spared] = attack(some[~spared], labels[~spared], keys[~spared], epoch, scale)
            else:
                x_adv = attack(some, labels, keys, epoch, scale)
            network.train()
            with skip_gradient_averaging(network, part < parts), fp32(device):
                loss, logits = compute_loss(network, some, x_adv, labels, data.num_classes, config)
                torch.autograd.backward(loss * (weight * group.size))  # DDP averages gradients over processes
            right = (logits.detach().argmax(1) == labels).double().mean()
            totals += weight * torch.stack([loss.detach().double(), right])
        value, accuracy = group.sum(totals).tolist()
        if not math.isfinite(value):
            raise group.error_of_rank(divergence_error(f"the loss became {value}", step + 1, steps, train))
        optimizer.step()
        if not config.compute.sync_batchnorm:
            average_buffers(model, group)
        if average is not None:
            average.update_parameters(model)
        yield Metrics(
            step=step + 1,
            steps=steps,
            epoch=(step + 1) / per_epoch,
            loss=value,
            accuracy=accuracy,
            lr=lr,
            seconds=time.perf_counter() - began,
            waited=began - ready,
            images=count,
        )
        ready = time.perf_counter()


def load_on_all(loaded: Iterator[Batch], group: Group, parts: int, step: int) -> Iterator[Batch]:
    """Yield the batches of ``loaded`` in every process; if a process lacks images, all processes end.

    Args:
        parts: number of micro-batches that each batch is split into.
        step: number of steps before the first batch, for error messages.
    """

    def load() -> Batch | None:
        batch = next(loaded, None)
        if batch is not None and len(batch[1]) < parts:
            raise RunError(
                f"step {step + 1} has a micro-batch without any readable image: see the warnings above, and repair the "
                "files"
            )
        return batch

    while (batch := group.run_on_all(load)) is not None:
        yield batch
        step += 1


def left_clean(train: TrainConfig) -> Tensor:
    """Return the mask of clean images in a batch, [batch_size] bool: a share ``train.mix``, evenly spaced."""
    due = (torch.arange(train.batch_size + 1, dtype=torch.float64) * train.mix + 1e-9).floor()
    return due.diff() > 0


def yield_orders(data: Dataset, config: Config, group: Group, start_step: int) -> Iterator[Order]:
    """Yield this process's positions in every remaining batch, with the epoch."""
    batch_size = config.train.batch_size
    per_epoch = len(data) // batch_size
    for epoch in range(start_step // per_epoch, config.train.epochs):
        for positions in shuffle_positions(data, batch_size, seed=config.seed, epoch=epoch)[
            max(0, start_step - epoch * per_epoch) :
        ]:
            yield group.share(positions), epoch


def compute_loss(
    network: nn.Module, x: Tensor, x_adv: Tensor, labels: Tensor, num_classes: int, config: Config
) -> tuple[Tensor, Tensor]:
    """Return the mean loss over the images, and the logits of the adversarial images.

    The loss "trades" is the cross-entropy on clean images + beta * KL(clean || adversarial) (Zhang et al. 2019 and
    their code).

    Args:
        x, x_adv: clean and adversarial images, [N, C, H, W].
    """
    train, compute = config.train, config.compute

    def logits_of(images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=compute.precision == "bf16"):
            logits: Tensor = network(images)
        if logits.shape != (len(labels), num_classes):
            raise InputError(
                f"the model returns a tensor {tuple(logits.shape)} for {len(labels)} images: it must return logits "
                f"({len(labels)}, {num_classes}), because the data set has {num_classes} classes"
            )
        return logits.float() if compute.precision == "bf16" else logits

    if train.loss == "cross-entropy":
        logits = logits_of(x_adv)
        return F.cross_entropy(logits, labels, label_smoothing=train.label_smoothing), logits
    clean, logits = logits_of(x), logits_of(x_adv)
    divergence = F.kl_div(logits.log_softmax(1), clean.softmax(1), reduction="batchmean")
    return F.cross_entropy(clean, labels) + train.beta * divergence, logits

"""The sections of a config: frozen dataclasses that check their values."""

from __future__ import annotations

from dataclasses import dataclass

from .. import protocols
from ..data.augmentation import AUGMENTATIONS
from ..utils.checks import check_at_least, check_name, check_shares
from ..utils.errors import InputError
from ..utils.machine import check_processes, check_threads

LOSSES = ("cross-entropy", "trades")
SCHEDULES = ("steps", "linear")
PRECISIONS = ("fp32", "bf16")
COMPILED = ("off", "default", "reduce-overhead", "max-autotune")
UNREADABLE = ("fail", "skip")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Training data: the arguments of ``data.load``.

    Attributes:
        name: name of the data set.
        root: folder of a data set that does not ship with the package.
        augment: random transformation of training images, a key of ``data.augmentation.AUGMENTATIONS``.
        workers: processes that decode images for each training process; 0 decodes in the training process itself.
        limit: number of training images to use, evenly spaced over the split; 0 uses all.
        unreadable: what to do about an image that cannot be read, in training and in accuracies: "fail" with an error,
            or "skip" it with a warning. Both name the image.
    """

    name: str = "fashion-mnist-mini"
    root: str | None = None
    augment: str = "none"
    workers: int = 0
    limit: int = 0
    unreadable: str = "fail"

    def __post_init__(self) -> None:
        check_name("augmentation", self.augment, AUGMENTATIONS)
        check_name("choice for data.unreadable", self.unreadable, UNREADABLE)
        check_at_least(0, limit=self.limit)
        check_processes(workers=self.workers)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Loss and schedule of stochastic gradient descent; defaults are the paper's (appendix).

    Attributes:
        epochs: passes over the training images.
        batch_size: images per step, of all processes together.
        lr: peak learning rate, reached after a linear warmup of ``warmup_epochs``.
        schedule: "steps" divides the rate by 10 at each epoch in ``milestones``; "linear" decays it to zero at the end
            (Li et al. 2020) and ignores ``milestones``.
        lr_images: batch size that ``lr`` is given for; the rate is scaled linearly to ``batch_size`` (Goyal et al.
            2017). 0 takes ``lr`` as it is.
        momentum, weight_decay: arguments of SGD; the decay applies to every parameter.
        loss: "cross-entropy" on the attacked images, or "trades": cross-entropy on the clean images plus ``beta`` times
            the KL divergence between the predictions for clean and attacked images (Zhang et al. 2019).
        mix: share of each batch that is left clean.
        clean_start: probability that the attack on an image starts at the image itself (Xie et al. 2019).
        label_smoothing: share of the target's probability that is spread over all classes.
        eps_warmup_epochs: epochs in which the attack's eps and step size grow linearly to their values (ours).
        ema: decay of the exponential moving average of the weights, e.g. 0.999; the averaged weights are then the ones
            that are saved and tested. 0 keeps no average.
        threads: CPU threads; 0 leaves the number to PyTorch. Two can be slower than one for small networks.
        device: "cpu", "cuda", "cuda:1", ... or "auto".
    """

    epochs: int = 110
    batch_size: int = 1024
    lr: float = 0.4
    lr_images: int = 0
    warmup_epochs: float = 5.0
    schedule: str = "steps"
    milestones: tuple[int, ...] = (30, 60, 90)
    momentum: float = 0.9
    weight_decay: float = 1e-4
    loss: str = "cross-entropy"
    beta: float = 6.0
    mix: float = 0.0
    clean_start: float = 0.0
    label_smoothing: float = 0.0
    eps_warmup_epochs: float = 0.0
    ema: float = 0.0
    threads: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        check_at_least(1, epochs=self.epochs)
        check_at_least(2, batch_size=self.batch_size)  # batch norm needs two images
        check_at_least(0, lr=self.lr, lr_images=self.lr_images, warmup_epochs=self.warmup_epochs)
        check_at_least(0, weight_decay=self.weight_decay, beta=self.beta)
        check_threads(self.threads)
        check_at_least(0, eps_warmup_epochs=self.eps_warmup_epochs)
        check_shares(momentum=self.momentum, mix=self.mix, label_smoothing=self.label_smoothing, ema=self.ema)
        check_name("loss", self.loss, LOSSES)
        check_name("schedule", self.schedule, SCHEDULES)
        if not 0 <= self.clean_start <= 1:
            raise InputError(f"clean_start = {self.clean_start}: must be in [0, 1]")
        if list(self.milestones) != sorted(set(self.milestones)) or any(m < 1 for m in self.milestones):
            raise InputError(f"milestones = {list(self.milestones)}: must be increasing epochs, each at least 1")
        if self.loss == "trades" and (self.mix or self.label_smoothing or self.clean_start):
            raise InputError(
                "loss = 'trades' uses every image both clean and attacked, and one kind of start: set mix, "
                "clean_start and label_smoothing to 0"
            )


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """Robust accuracy on held-out training images, which shows robust overfitting and selects the best weights.

    Attributes:
        images: number of images held out, chosen by their ids and the same for every seed; 0 for no validation.
        every: epochs between validations; the last epoch always has one.
        protocol: a key of ``protocols.PROTOCOLS``; by default untargeted PGD with the eps of training and 10 steps of
            eps / 4 (ours, after Rice et al. 2020).
        max_drop: stop training when robust accuracy falls by more than this fraction from one validation to the next,
            as it does in catastrophic overfitting (Wong et al. 2020: 0.2); 0 never stops.
    """

    images: int = 0
    every: int = 1
    protocol: str | None = None
    max_drop: float = 0.0

    def __post_init__(self) -> None:
        check_at_least(0, images=self.images)
        check_at_least(1, every=self.every)
        check_shares(max_drop=self.max_drop)
        if self.protocol is not None:
            protocols.get_pgd(self.protocol)
        if self.max_drop and not self.images:
            raise InputError(f"validation.max_drop = {self.max_drop}: needs held-out images; set validation.images")


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """Processes, precision and compilation.

    Attributes:
        micro_batch: maximum number of images in one forward pass of a process. Larger batches are split and their
            gradients accumulated; batch norm then normalizes each micro-batch separately. 0 means no limit.
        sync_batchnorm: batch norm over the images of all processes; by default over those of each process (paper).
        precision: arithmetic of training passes: "fp32", or "bf16" by autocast.
        attack_precision: arithmetic of the attack, likewise. Attacks in bf16 can be weaker.
        compile: "off", or a mode of torch.compile; "reduce-overhead" uses CUDA graphs.
    """

    micro_batch: int = 0
    sync_batchnorm: bool = False
    precision: str = "fp32"
    attack_precision: str = "fp32"
    compile: str = "off"

    def __post_init__(self) -> None:
        if self.micro_batch != 0:
            check_at_least(2, micro_batch=self.micro_batch)  # batch norm needs two images
        check_name("precision", self.precision, PRECISIONS)
        check_name("attack_precision", self.attack_precision, PRECISIONS)
        check_name("choice for compute.compile", self.compile, COMPILED)


@dataclass(frozen=True, kw_only=True)
class OutputConfig:
    """Files that a run writes in addition to weights and metrics.

    Attributes:
        keep: number of training states to keep; an older one is used if the newest is damaged.
        tensorboard: also write the metrics for TensorBoard, which must be installed.
    """

    keep: int = 2
    tensorboard: bool = False

    def __post_init__(self) -> None:
        check_at_least(1, keep=self.keep)

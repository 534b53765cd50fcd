"""Estimate the duration of a training run from a few steps measured on this machine."""

from __future__ import annotations

import resource
import statistics
from dataclasses import dataclass, replace
from math import prod

import torch

from ..config.sections import ValidationConfig
from ..config.training import Config
from ..data.dataset import Dataset, from_arrays
from ..models.build import build_model
from ..utils.checks import check_at_least
from ..utils.devices import pick_device
from ..utils.errors import InputError
from ..utils.machine import check_batch
from ..utils.provenance import device_name
from .loop import adversarial_train
from .run import prepare

#: training images, classes and image shape of data sets that may be absent; ImageNet's shape is that after augmentation
KNOWN_SIZES = {
    "imagenet": (1_281_167, 1000, (3, 224, 224)),
    "cifar10": (50_000, 10, (3, 32, 32)),
    "fashion-mnist": (60_000, 10, (1, 28, 28)),
}

#: maximum number of pixels in a measured pass on a CPU, equal to 4 images of 224 x 224; larger passes are no faster
CPU_PIXELS = 4 * 224 * 224


@dataclass(frozen=True)
class Plan:
    """A measurement of training steps, and the estimate for the whole run.

    Attributes:
        device: name of the measured device.
        images: number of images in each measured step.
        seconds: median duration of a measured step.
        memory: peak memory in bytes: allocated on a GPU, resident on a CPU.
        epoch_images, epochs: number of images per epoch, and of epochs, of the run.
        processes: number of processes of the run, each with a device like the measured one.
        share: images per pass in each process of the run.
        assumed: sentence about the assumed size of the data set if it is absent, else None.
    """

    device: str
    images: int
    seconds: float
    memory: int
    epoch_images: int
    epochs: int
    processes: int
    share: int
    assumed: str | None

    @property
    def images_per_second(self) -> float:
        """Images per second of one process."""
        return self.images / self.seconds

    @property
    def hours(self) -> float:
        """Hours of the whole run."""
        return self.epochs * self.epoch_images / (self.processes * self.images_per_second) / 3600

    def assumptions(self) -> list[str]:
        """Return the assumptions behind ``hours``, one sentence each."""
        return [
            *([] if self.assumed is None else [self.assumed]),
            f"{self.processes} processes are each as fast as this one alone: communication is not counted",
            "loading images keeps up; tests and validations at the end of epochs are not counted",
            *[f"the time per image is the same with {self.share} images per pass as with the {self.images} measured"]
            * (self.share != self.images),
            *["a CPU was measured, which says nothing about GPUs: measure on a GPU for those"]
            * self.device.startswith("cpu"),
        ]


def plan(config: Config, *, processes: int = 1, images: int = 0, steps: int = 3) -> Plan:
    """Measure training steps of ``config`` on random images and extrapolate to the whole run.

    Args:
        processes: number of processes of the planned run.
        images: images per measured step; 0 takes a process's share of the batch, on a CPU at most ``CPU_PIXELS``.
        steps: number of measured steps, after one for warmup.

    Raises:
        InputError: a value out of range, or a data set that is absent and not in ``KNOWN_SIZES``.
    """
    check_at_least(1, processes=processes, steps=steps)
    check_at_least(0, images=images)
    device = pick_device(config.train.device)
    epoch_images, classes, shape, assumed = find_size(config)
    check_batch("images * (steps + 1)", images * (steps + 1), prod(shape))
    batch_size = config.train.batch_size
    share = -(-batch_size // processes)
    if config.compute.micro_batch:
        share = min(share, config.compute.micro_batch)
    most = max(2, CPU_PIXELS // (shape[1] * shape[2])) if device.type == "cpu" else share
    images = images or min(share, most)
    generator = torch.Generator().manual_seed(0)
    pictures = torch.rand(images * (steps + 1), *shape, generator=generator)
    data = from_arrays(pictures, torch.arange(len(pictures)) % classes, num_classes=classes, name="random images")
    model = build_model(**config.model, num_classes=classes, in_channels=shape[0]).to(device)
    train = replace(config.train, epochs=1, batch_size=images, milestones=())
    short = replace(
        config, train=train, data=replace(config.data, augment="none", workers=0), validation=ValidationConfig()
    )
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = [step.seconds for step in adversarial_train(model, data, short)]
    memory = (
        torch.cuda.max_memory_allocated(device)
        if device.type == "cuda"
        else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    )
    return Plan(
        device=device_name(device),
        images=images,
        seconds=statistics.median(seconds[1:]),
        memory=memory,
        epoch_images=epoch_images // batch_size * batch_size,
        epochs=config.train.epochs,
        processes=processes,
        share=share,
        assumed=assumed,
    )


def find_size(config: Config) -> tuple[int, int, tuple[int, int, int], str | None]:
    """Return the number of training images, of classes, the image shape, and a sentence if these are assumed."""
    name = config.data.name
    try:
        data: Dataset = prepare(config).train
    except InputError:
        if name not in KNOWN_SIZES:
            raise
        count, classes, shape = KNOWN_SIZES[name]
        taken = min(config.data.limit or count, count) - config.validation.images
        title = "ImageNet" if name == "imagenet" else name
        return (
            taken,
            classes,
            shape,
            f"{title} is not here, assuming {taken:,} images of {shape[1]} x {shape[2]} pixels in {classes} classes",
        )
    return len(data), data.num_classes, data.image_shape, None

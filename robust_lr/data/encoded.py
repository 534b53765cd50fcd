"""Data sets that decode their images, as RGB, on each access: from files, or from JPEGs in one array."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from ..utils.errors import InputError
from .dataset import Array, Dataset, in_unit_range, to_unit_range

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".webp")

Transform = Callable[["Image"], Tensor]
"""Function from a PIL image (mode RGB) to a tensor [C, H, W], uint8 or float32 in [0, 1].

It does not normalize: normalization belongs to the model.
"""


class Unreadable(InputError):
    """An image that cannot be read."""


class Source(Protocol):
    """Encoded images, addressed by row number."""

    def open(self, row: int) -> Path | BinaryIO:
        """Return a file that PIL can open."""

    def describe(self, row: int) -> str:
        """Return words for the image in errors."""

    def fingerprint(self, row: int) -> bytes:
        """Return the bytes that `content_hash` covers for the image."""


@dataclass(frozen=True, eq=False)
class FileSource:
    """Image files below a folder; `paths` are relative to it, with forward slashes."""

    folder: Path
    paths: Sequence[str]

    def open(self, row: int) -> Path:
        return self.folder / self.paths[row]

    def describe(self, row: int) -> str:
        return f"file {self.open(row)}"

    def fingerprint(self, row: int) -> bytes:
        # Only the name and size: reading all of ImageNet to hash it would take longer than an evaluation.
        return f"{self.paths[row]}\0{os.stat(self.open(row)).st_size}\0".encode()


@dataclass(frozen=True, eq=False)
class BlobSource:
    """Encoded images, concatenated in one uint8 array: image i is blob[offsets[i]:offsets[i + 1]]."""

    path: Path
    blob: Array
    offsets: Array

    def open(self, row: int) -> BytesIO:
        return BytesIO(self.fingerprint(row))

    def describe(self, row: int) -> str:
        return f"image {row} of {self.path}"

    def fingerprint(self, row: int) -> bytes:
        return self.blob[self.offsets[row] : self.offsets[row + 1]].tobytes()


@dataclass(frozen=True, eq=False, kw_only=True)
class LazyDataset(Dataset):
    """A data set that decodes its images, as RGB, on each access; create it with `from_source`."""

    source: Source = field(repr=False)
    rows: Tensor = field(repr=False)  # int64 [N]: row of each image in the source
    transform: Transform | None = None

    def transformed(self, transform: Transform) -> Self:
        """Return the same images with another transform. Raises `InputError` as `decode` does."""
        return replace(self, transform=transform, image_shape=shape(self.source, self.rows.tolist(), transform))

    def _image(self, row: int) -> Tensor:
        image = decode(self.source, row, self.transform)
        if image.shape != self.image_shape:
            raise InputError(
                f"{self.name}: {self.source.describe(row)} has shape {list(image.shape)}, the first image of the set "
                f"has {list(self.image_shape)}; resize the images to one shape, or pass a transform that does"
            )
        return image

    def _pixels(self, indices: Tensor) -> Tensor:
        return stack_images([self._image(row) for row in self.rows[indices].tolist()])

    def _rows(self, indices: Tensor) -> dict[str, Any]:
        return {"rows": self.rows[indices]}

    def _content(self) -> Iterator[bytes | memoryview]:
        return (self.source.fingerprint(row) for row in self.rows.tolist())


def decode(source: Source, row: int, transform: Transform | None) -> Tensor:
    """Decode an image to [C, H, W], uint8 or float32 in [0, 1].

    Raises:
        Unreadable: the image cannot be decoded; the message names it.
        InputError: the transform returns something else.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(source.open(row)) as file:
            if file.mode.startswith(("I", "F")):  # PIL would silently clip these to 255
                raise ValueError(f"mode {file.mode} has more than 8 bits per channel")
            image = file.convert("RGB")
    except Exception as error:  # PIL's decoders raise many types, including SyntaxError and struct.error
        reason = "unknown format" if isinstance(error, UnidentifiedImageError) else str(error) or type(error).__name__
        raise Unreadable(
            f"{source.describe(row)} cannot be read as an image ({reason}); replace or remove it"
        ) from error
    if transform is None:
        return pixels(image)
    out = transform(image)
    if (
        not isinstance(out, Tensor)
        or out.ndim != 3
        or not (out.dtype == torch.uint8 or (out.dtype == torch.float32 and in_unit_range(out.numpy())))
    ):
        raise InputError(
            f"the transform returned a wrong image for {source.describe(row)}; it must return a tensor [C, H, W], "
            "uint8 or float32 with pixels in [0, 1] (normalization belongs to the model)"
        )
    return out


def pixels(image: Image) -> Tensor:
    """Convert a PIL image (mode RGB, 8 bits per channel) to uint8 [3, H, W]."""
    return torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())


def center_crop(image: Image, short: int = 256, side: int = 224) -> Tensor:
    """Resize the shorter side to `short`, crop the central `side` x `side` pixels; returns uint8 [3, side, side]."""
    from torchvision.transforms import functional

    return pixels(functional.center_crop(functional.resize(image, [short]), [side, side]))


def stack_images(images: Sequence[Tensor]) -> Tensor:
    """Stack images into one tensor, uint8 if all images are uint8, else float32 in [0, 1]."""
    if len({image.dtype for image in images}) > 1:
        images = [to_unit_range(image) for image in images]
    # NumPy, because torch would start threads even for small images, which is far slower on busy cores
    return torch.from_numpy(np.stack([image.numpy() for image in images]))


def from_source(
    source: Source,
    labels: Array,
    ids: Array | None = None,
    *,
    num_classes: int,
    classes: tuple[str, ...] | None = None,
    name: str,
    transform: Transform | None = None,
) -> LazyDataset:
    """Create a data set of encoded images. Only the first readable image is decoded, to get the shape.

    Args:
        labels, ids: int64 [N]; ids are by default the row numbers.
    """
    if len(labels) == 0:
        raise InputError(f"{name}: the set is empty; it needs at least one image")
    return LazyDataset(
        name=name,
        num_classes=num_classes,
        image_shape=shape(source, range(len(labels)), transform),
        classes=classes,
        labels=torch.from_numpy(labels),
        ids=torch.arange(len(labels)) if ids is None else torch.from_numpy(ids),
        source=source,
        rows=torch.arange(len(labels)),
        transform=transform,
    )


def shape(source: Source, rows: Iterable[int], transform: Transform | None) -> tuple[int, int, int]:
    """Return the shape [C, H, W] of the first readable image; without any, raise the error of the first image."""
    first: Unreadable | None = None
    for row in rows:
        try:
            with torch.random.fork_rng(devices=[]):  # a random transform must not advance the generator
                channels, height, width = decode(source, row, transform).shape
        except Unreadable as error:
            first = first or error
        else:
            return channels, height, width
    assert first is not None  # there is at least one image
    raise first

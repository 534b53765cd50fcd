"""Data sets: images with pixels in [0, 1], labels, and ids that key all random numbers.

`ArrayDataset` holds its images in memory; `encoded.LazyDataset` decodes them on access.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
import torch.utils.data
from torch import Tensor

from ..utils.errors import InputError

Array = npt.NDArray[Any]
Item = tuple[Tensor, int, int]
Batch = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True, eq=False, kw_only=True)
class Dataset(torch.utils.data.Dataset[Item], ABC):
    """A frozen, map-style data set of `(image, label, id)`.

    An image is float32 [C, H, W] with pixels in [0, 1]. An id is a non-negative integer that identifies the image: it
    stays the same in any order and any subset.

    Raises `InputError` when the set is empty, lengths differ, a label lies outside 0..num_classes-1, or ids are
    negative or appear twice.
    """

    name: str
    num_classes: int
    image_shape: tuple[int, int, int]  # [C, H, W]
    labels: Tensor = field(repr=False)  # int64 [N]
    ids: Tensor = field(repr=False)  # int64 [N]
    classes: tuple[str, ...] | None = field(default=None, repr=False)  # class names, if known

    def __post_init__(self) -> None:
        if len(self) == 0:
            raise InputError(f"{self.name}: the set is empty; it needs at least one image")
        if len(self.labels) != len(self.ids):
            raise InputError(f"{self.name}: {len(self.labels)} labels but {len(self.ids)} ids; lengths must agree")
        wrong = ((self.labels < 0) | (self.labels >= self.num_classes)).nonzero()
        if len(wrong):
            i = int(wrong[0])
            raise InputError(
                f"{self.name}: label {int(self.labels[i])} at index {i} is outside the classes; "
                f"num_classes={self.num_classes} allows 0..{self.num_classes - 1}"
            )
        if self.ids.min() < 0:
            raise InputError(f"{self.name}: id {int(self.ids.min())} is negative; ids must be 0 or more")
        ordered = self.ids.sort().values
        repeated = ordered[1:][ordered[1:] == ordered[:-1]]
        if len(repeated):
            raise InputError(f"{self.name}: id {int(repeated[0])} appears twice; ids must be unique")

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Item:
        """Return an image float32 [C, H, W] in [0, 1], its label and its id.

        Raises `InputError` if a lazy image cannot be read.
        """
        label, id_ = int(self.labels[index]), int(self.ids[index])  # raise IndexError at the end, before any decoding
        return to_unit_range(self._pixels(torch.tensor([index]))[0]), label, id_

    def batch(self, indices: Tensor) -> Batch:
        """Return images float32 [n, C, H, W] in [0, 1], labels and ids int64 [n] at positions `indices`, int64 [n]."""
        pixels, labels, ids = self.raw(indices)
        return to_unit_range(pixels), labels, ids

    def raw(self, indices: Tensor) -> Batch:
        """Return the same as `batch`, but images that are stored as uint8 stay uint8; see `to_unit_range`."""
        indices = _positions(indices)
        return self._pixels(indices), self.labels[indices], self.ids[indices]

    def subset(self, indices: Tensor | Sequence[int]) -> Self:
        """Return the images at these positions, in this order and with their ids.

        Raises `InputError` if a position is repeated or there is none.
        """
        indices = _positions(indices)
        return replace(self, labels=self.labels[indices], ids=self.ids[indices], **self._rows(indices))

    def take(self, n: int) -> Self:
        """Return the first `n` images. Raises `InputError` unless 1 <= n <= len(self).

        Folders are sorted by class, so the first images may all be of one class; see `spread`.
        """
        if not 1 <= n <= len(self):
            raise InputError(f"{self.name}: cannot take {n} images; allowed are 1..{len(self)}")
        return self.subset(torch.arange(n))

    @abstractmethod
    def _pixels(self, indices: Tensor) -> Tensor:
        """Load images [n, C, H, W], uint8 or float32 in [0, 1]."""

    @abstractmethod
    def _rows(self, indices: Tensor) -> dict[str, Any]:
        """Return the other fields that have one row per image, restricted to these rows."""

    @abstractmethod
    def _content(self) -> Iterator[bytes | memoryview]:
        """Yield the bytes that `content_hash` covers in addition to shape, ids and labels."""


@dataclass(frozen=True, eq=False, kw_only=True)
class ArrayDataset(Dataset):
    """A data set whose images are in memory, uint8 or float32 [N, C, H, W]; create it with `from_arrays`."""

    images: Tensor = field(repr=False)

    def _pixels(self, indices: Tensor) -> Tensor:
        return self.images[indices]

    def _rows(self, indices: Tensor) -> dict[str, Any]:
        return {"images": self.images[indices]}

    def _content(self) -> Iterator[bytes | memoryview]:
        yield self.images.numpy().data


def from_arrays(
    images: Tensor | Array,
    labels: Tensor | Array | Sequence[int],
    ids: Tensor | Array | Sequence[int] | None = None,
    *,
    num_classes: int | None = None,
    classes: Sequence[str] | None = None,
    name: str = "arrays",
) -> ArrayDataset:
    """Create a data set from arrays in memory, which are copied.

    Args:
        images: [N, H, W], [N, C, H, W] or [N, H, W, C] with C = 1 or 3; uint8, or float in [0, 1].
        labels: integers [N].
        ids: unique, non-negative integers [N]; by default the index.
        num_classes: number of classes; by default the largest label + 1.
        classes: names of the classes.
        name: name of the data set, in results and errors.

    Raises:
        InputError: a shape, dtype or value other than these.
    """
    array, integers = _numpy(images), as_integers(labels, f"{name}: labels")
    first = array.ndim == 4 and array.shape[1] in (1, 3)
    last = array.ndim == 4 and array.shape[3] in (1, 3)
    if (first == last and array.ndim != 3) or 0 in array.shape[1:]:
        raise InputError(
            f"{name}: images have shape {list(array.shape)}; allowed are [N, H, W], and [N, C, H, W] or [N, H, W, C] "
            "where exactly one of the two is a channel count, 1 or 3"
        )
    array = array[:, None] if array.ndim == 3 else array.transpose(0, 3, 1, 2) if last else array
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise InputError(f"{name}: images have dtype {array.dtype}; allowed are uint8 in 0..255 and float in [0, 1]")
    array = np.array(array, dtype=np.uint8 if array.dtype == np.uint8 else np.float32, order="C")
    if len(array) and array.dtype == np.float32 and not in_unit_range(array):
        raise InputError(
            f"{name}: float images span {array.min():g} to {array.max():g}; allowed is [0, 1] without NaN "
            "(divide pixels by 255; normalization belongs to the model)"
        )
    if len(array) != len(integers):
        raise InputError(f"{name}: {len(array)} images but {len(integers)} labels; lengths must agree")
    return ArrayDataset(
        name=name,
        num_classes=int(integers.max(initial=-1)) + 1 if num_classes is None else num_classes,
        image_shape=(array.shape[1], array.shape[2], array.shape[3]),
        classes=None if classes is None else tuple(classes),
        labels=torch.from_numpy(integers),
        ids=torch.arange(len(array)) if ids is None else torch.from_numpy(as_integers(ids, f"{name}: ids")),
        images=torch.from_numpy(array),
    )


def content_hash(dataset: Dataset, *, images: bool = True) -> str:
    """Return the SHA-256, in hex, of the image shape, the ids, the labels and, if `images`, the images, in order.

    The hash covers the stored pixels of images in memory, the encoded bytes of JPEGs in an npz, and only the relative
    names and sizes of files in a folder. It covers neither the name of the data set nor the transform.
    """
    digest = hashlib.sha256(repr((dataset.image_shape, len(dataset))).encode())
    digest.update(dataset.ids.numpy().data)
    digest.update(dataset.labels.numpy().data)
    for part in dataset._content() if images else ():
        digest.update(part)
    return digest.hexdigest()


def evenly_spaced(count: int, n: int) -> Tensor:
    """Return ``n`` evenly spaced positions among ``count`` (folders are sorted by class); all if ``n`` is larger."""
    n = min(n, count)
    return torch.arange(n) * count // n


def as_integers(values: Tensor | Array | Sequence[int], what: str) -> npt.NDArray[np.int64]:
    """Copy integers into an int64 array [N]. Raises `InputError`, beginning with `what`, for other dtypes or shapes."""
    array = _numpy(values)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise InputError(f"{what} have dtype {array.dtype} and shape {list(array.shape)}; allowed are integers [N]")
    return array.astype(np.int64)


def _numpy(values: Tensor | Array | Sequence[int]) -> Array:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _positions(indices: Tensor | Sequence[int]) -> Tensor:
    # A boolean mask converted to int64 would silently select images 0 and 1.
    return torch.from_numpy(as_integers(indices, "indices"))


def to_unit_range(pixels: Tensor) -> Tensor:
    """Convert uint8 pixels to float32 in [0, 1], bit-identical on every device; float32 is returned unchanged."""
    if pixels.is_floating_point():
        return pixels
    # Divide by a tensor, because CUDA replaces the division by a Python number with its rounded reciprocal.
    return pixels.to(torch.float32).div_(torch.full((), 255.0, device=pixels.device))


def in_unit_range(pixels: Array) -> bool:
    return bool(((pixels >= 0) & (pixels <= 1)).all())  # False for NaN


def spread(data: Dataset, n: int) -> Dataset:
    """Return ``n`` evenly spaced images of ``data``; InputError unless 1 <= n <= len(data)."""
    if not 1 <= n <= len(data):
        raise InputError(f"limit = {n}: {data.name} has {len(data)} images; allowed are 1 to {len(data)}")
    return data.subset(evenly_spaced(len(data), n))

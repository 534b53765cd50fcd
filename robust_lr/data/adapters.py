"""Convert other programs' data to data sets of this package: tensors, PyTorch data sets and loaders, Hugging Face."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.utils.data
from torch import Tensor

from ..utils.errors import InputError
from .dataset import Dataset, from_arrays

#: column names of images and labels in rows; the first that occurs is used
IMAGE_COLUMNS = ("image", "img", "pixel_values")
LABEL_COLUMNS = ("label", "labels", "fine_label")

#: maximum size in bytes of the images that are held in memory because they can be read only once
MAX_BYTES = 2**32


def as_dataset(data: Any, num_classes: int | None = None) -> Dataset:
    """Convert ``data`` to a data set of this package.

    Args:
        data: a data set of this package; a tuple (images, labels) or (images, labels, ids) of tensors or arrays; a
            ``torch.utils.data.Dataset`` of (image, label) or (image, label, id), a ``Subset`` or a ``DataLoader`` of
            one; or a ``datasets.Dataset`` with a column of images and one of labels. Without ids, the id of an image
            is its position, in a subset its position in the whole set.
        num_classes: number of classes; by default that of ``data`` if it has one, else the largest label + 1.

    Raises:
        InputError: ``data`` of another type, images that are neither uint8 nor float in [0, 1], or images that change
            when they are read again.
    """
    if isinstance(data, Dataset):
        return data
    if isinstance(data, torch.utils.data.DataLoader):
        return _from_loader(data, num_classes)
    if isinstance(data, torch.utils.data.Subset):
        indices = [int(index) for index in data.indices]
        whole = data.dataset
        if isinstance(whole, Dataset):
            return whole.subset(indices)
        return _from_items(whole, indices, num_classes)
    if isinstance(data, tuple | list) and len(data) in (2, 3) and all(isinstance(d, Tensor | np.ndarray) for d in data):
        images, labels, *ids = data
        return from_arrays(images, labels, *ids, num_classes=num_classes, name="tensors")
    if hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, str | bytes | Mapping):
        return _from_items(data, range(len(data)), num_classes)
    raise InputError(
        f"data of type {type(data).__name__}: give a data set of robust_lr.data, tensors (images, labels), a PyTorch "
        "Dataset, Subset or DataLoader of (image, label), or a Hugging Face datasets.Dataset"
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class ItemDataset(Dataset):
    """A data set that reads its images one by one from a sequence of (image, label)."""

    items: Any = field(repr=False)
    rows: Tensor = field(repr=False)  # int64 [N], positions in ``items``
    digests: Tensor = field(repr=False)  # uint8 [N, 32], SHA-256 of the pixels when they were first read

    def _pixels(self, indices: Tensor) -> Tensor:
        out = []
        for index in indices.tolist():
            pixels = _pixels_of(self.items[int(self.rows[index])], self.name, int(self.rows[index]))
            if _digest(pixels) != bytes(self.digests[index].tolist()):
                raise InputError(
                    f"{self.name}: the pixels of item {int(self.rows[index])} changed since they were first read: "
                    "remove random transforms from the data set"
                )
            out.append(pixels)
        return torch.stack(out)

    def _rows(self, indices: Tensor) -> dict[str, Any]:
        return {"rows": self.rows[indices], "digests": self.digests[indices]}

    def _content(self) -> Iterator[bytes | memoryview]:
        yield self.digests.numpy().data


def _from_items(items: Any, rows: Sequence[int], num_classes: int | None) -> ItemDataset:
    """Read every item once to get its label, its id and the hash of its pixels."""
    name = type(items).__name__
    labels, ids, digests, shape = [], [], [], None
    for row in rows:
        item = items[row]
        pixels = _pixels_of(item, name, row)
        if shape is not None and pixels.shape != shape:
            raise InputError(
                f"{name}: item {row} has shape {list(pixels.shape)}, but earlier items have {list(shape)}: resize the "
                "images to one shape"
            )
        shape = pixels.shape
        label, id_ = _label_of(item, name, row)
        labels.append(label)
        ids.append(row if id_ is None else id_)
        digests.append(list(_digest(pixels)))
    if shape is None:
        raise InputError(f"{name}: the set is empty; it needs at least one image")
    classes = _class_names(items)
    return ItemDataset(
        name=name,
        num_classes=num_classes or (len(classes) if classes else max(labels) + 1),
        image_shape=(shape[0], shape[1], shape[2]),
        labels=torch.tensor(labels),
        ids=torch.tensor(ids),
        classes=classes,
        items=items,
        rows=torch.tensor(list(rows)),
        digests=torch.tensor(digests, dtype=torch.uint8),
    )


def _from_loader(loader: Any, num_classes: int | None) -> Dataset:
    """Return the loader's data set if the loader yields each image once, unchanged; else hold its batches in memory."""
    sampler = getattr(loader, "sampler", None)
    plain = loader.collate_fn is torch.utils.data.default_collate and loader.batch_size is not None
    in_order = isinstance(sampler, torch.utils.data.SequentialSampler | torch.utils.data.RandomSampler)
    if plain and in_order and not getattr(sampler, "replacement", False) and len(loader.sampler) == len(loader.dataset):
        return as_dataset(loader.dataset, num_classes)
    if plain and isinstance(sampler, torch.utils.data.SubsetRandomSampler):
        indices = [int(index) for index in sampler.indices]
        return as_dataset(torch.utils.data.Subset(loader.dataset, indices), num_classes)
    return _hold_batches(loader, num_classes)


def _hold_batches(batches: Iterable[Any], num_classes: int | None) -> Dataset:
    columns: list[list[Any]] = [[], [], []]
    size = 0
    for batch in batches:
        if not isinstance(batch, tuple | list) or len(batch) not in (2, 3) or not isinstance(batch[0], Tensor):
            raise InputError(f"DataLoader: a batch is {type(batch).__name__}; it must be (images, labels[, ids])")
        size += batch[0].nbytes
        if size > MAX_BYTES:
            raise InputError(
                f"DataLoader: its images exceed {MAX_BYTES / 2**30:.0f} GiB, and must be held in memory because of its "
                "custom sampler or collate_fn: give its data set instead"
            )
        for column, values in zip(columns, batch, strict=False):
            column.append(torch.as_tensor(values))
    if not columns[0]:
        raise InputError("DataLoader: it yields no batch; at least one image is needed")
    images, labels, *ids = (torch.cat(column) for column in columns if column)
    return from_arrays(images, labels, *ids, num_classes=num_classes, name="DataLoader")


def _column(item: Mapping[str, Any], names: Sequence[str], name: str) -> Any:
    for column in names:
        if column in item:
            return item[column]
    raise InputError(
        f"{name}: its rows have the columns {', '.join(map(str, item))}; one must be named {' or '.join(names)}"
    )


def _pixels_of(item: Any, name: str, row: int) -> Tensor:
    """Return the pixels [C, H, W], uint8 or float32 in [0, 1], of an item: (image, label[, id]) or a mapping."""
    if isinstance(item, Mapping):
        image = _column(item, IMAGE_COLUMNS, name)
    elif isinstance(item, tuple | list) and len(item) in (2, 3):
        image = item[0]
    else:
        raise InputError(f"{name}: item {row} is {type(item).__name__}; it must be (image, label[, id])")
    if not isinstance(image, Tensor):
        try:
            image = torch.from_numpy(np.array(image))
        except (TypeError, ValueError) as error:
            raise InputError(
                f"{name}: the image of item {row}, {type(image).__name__}, cannot be converted to an array ({error})"
            ) from None
    # from_arrays checks shape, dtype and range
    return from_arrays(image[None], [0], name=f"{name}: item {row}").images[0]


def _label_of(item: Any, name: str, row: int) -> tuple[int, int | None]:
    label, id_ = (
        (_column(item, LABEL_COLUMNS, name), item.get("id")) if isinstance(item, Mapping) else (*item[1:], None)[:2]
    )
    try:
        return int(label), id_ if id_ is None else int(id_)
    except (TypeError, ValueError):
        raise InputError(f"{name}: item {row} has label {label!r} and id {id_!r}; both must be integers") from None


def _class_names(items: Any) -> tuple[str, ...] | None:
    names = getattr(items, "classes", None)
    features = getattr(items, "features", None)
    if names is None and isinstance(features, Mapping):
        names = next((getattr(features[c], "names", None) for c in LABEL_COLUMNS if c in features), None)
    return tuple(map(str, names)) if isinstance(names, list | tuple) and names else None


def _digest(pixels: Tensor) -> bytes:
    return hashlib.sha256(pixels.contiguous().numpy().tobytes()).digest()

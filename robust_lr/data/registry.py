"""The named data sets: `load(name, split)` returns a data set of `(image in [0, 1], label, id)`.

To add a data set, write a loader and a line in DATASETS. Nothing is ever downloaded, and npz files are read without
pickle.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..utils.checks import check_name
from ..utils.errors import InputError, RunError
from .dataset import Array, ArrayDataset, Dataset, as_integers, content_hash, from_arrays
from .encoded import IMAGE_SUFFIXES, BlobSource, FileSource, LazyDataset, Transform, center_crop, from_source
from .idx import load_idx
from .webdataset import load_tars

__all__ = [
    "DATASETS",
    "DEFAULT",
    "ArrayDataset",
    "Dataset",
    "LazyDataset",
    "Transform",
    "content_hash",
    "from_arrays",
    "load",
]

DEFAULT = "fashion-mnist-mini"
SPLITS = ("train", "test")
FASHION_CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
#: torchvision's class names for MNIST
DIGITS = (
    *("0 - zero", "1 - one", "2 - two", "3 - three", "4 - four"),
    *("5 - five", "6 - six", "7 - seven", "8 - eight", "9 - nine"),
)

Loader = Callable[[str, Path, str, Transform | None], Dataset]  # name, path, split, transform


def load(
    name: str = DEFAULT,
    split: str = "train",
    root: str | Path | None = None,
    *,
    transform: Transform | None = None,
) -> Dataset:
    """Load one split of a named data set.

    name: one of
      `fashion-mnist-mini`  ships with the package: 4,000 and 1,000 images [1, 28, 28]; ids index the full set's split.
      `fashion-mnist`, `mnist`  the four IDX files, plain or gzipped, in `root` or in torchvision's layout below it;
        `root` is by default ./data.
      `cifar10`, `cifar100`  in torchvision's layout below `root`, by default ./data.
      `imagenet`  `root`/train and `root`/val with a folder for each class; by default, images are resized to 256 and
        cropped to 224 pixels.
      `folder:PATH`  a folder for each class, in sorted order, in PATH/train and PATH/test (or PATH/val), or in PATH
        itself, which is then both splits. An image's id is its index in the sorted relative paths.
      `npz:PATH`  arrays `images` ([N, H, W], or with 1 or 3 channels first or last; uint8, or float in [0, 1]) and
        `labels`; or JPEGs as arrays `jpg`, `off` and `y`, where image i is jpg[off[i]:off[i + 1]]. A file with two
        splits has the prefixes `train_` and `test_`; without prefixes, the whole file is both splits. The array `ids`
        and the number `num_classes` are optional.
      `tar:PATH`  a folder of WebDataset shards with KEY.jpg and KEY.cls: PATH/train*.tar and PATH/test*.tar (or
        val*.tar). Without such names, all shards are both splits.
    split: "train" or "test".
    root: folder of the files; relative paths in `name` are relative to it. The embedded set ignores it.
    transform: function from a decoded file or JPEG, a PIL image (RGB), to a tensor [C, H, W], uint8 or float32 in
      [0, 1].

    Raises `InputError` for an unknown name or split, missing or unreadable files, and data that violate these rules.
    """
    kind, colon, path = name.partition(":")
    key = f"{kind}:PATH" if colon and path else name
    check_name("data set", key if key in DATASETS else name, DATASETS)
    check_name("split", split, SPLITS)
    base = Path() if root is None else Path(root).expanduser()
    if path:
        base = base / Path(path).expanduser()
    elif root is None:
        base = Path("data", "imagenet") if name == "imagenet" else Path("data")
    return DATASETS[key](name, base, split, transform)


def _embedded(name: str, path: Path, split: str, transform: Transform | None) -> Dataset:
    return _npz(name, Path(__file__).parents[1] / "assets" / f"{name}.npz", split, transform, classes=FASHION_CLASSES)


def _torchvision(
    name: str, path: Path, split: str, transform: Transform | None, *, class_name: str, files: str
) -> Dataset:
    _refuse_transform(name, transform)
    try:
        from torchvision import datasets
    except (ImportError, RuntimeError) as error:  # RuntimeError: its operators were built for another torch
        raise RunError(
            f"{name} needs torchvision, which cannot be imported ({error}); install the version for your torch"
        ) from error
    try:
        data: Any = getattr(datasets, class_name)(path, train=split == "train", download=False)
    except Exception as error:  # a missing or damaged file: RuntimeError, EOFError, ValueError, ...
        raise InputError(
            f"{name}: files missing or damaged in {(path / files).resolve()}; put the unpacked files there, as "
            f"torchvision's {class_name} lays them out, or pass another root; nothing is downloaded"
        ) from error
    return from_arrays(data.data, data.targets, num_classes=len(data.classes), classes=data.classes, name=name)


def _idx_loader(class_name: str, classes: tuple[str, ...]) -> Loader:
    def load_split(name: str, path: Path, split: str, transform: Transform | None) -> Dataset:
        _refuse_transform(name, transform)
        return load_idx(name, path, split, classes, f"{class_name}/raw")

    return load_split


def _imagenet(name: str, path: Path, split: str, transform: Transform | None) -> Dataset:
    return _class_folders(name, {"train": path / "train", "test": path / "val"}, split, transform or center_crop)


def _folder(name: str, path: Path, split: str, transform: Transform | None) -> Dataset:
    # A class may be named "train": only a folder that itself contains folders is a split.
    held = [part for part in ("train", "test", "val") if _class_names(path / part)]
    if not held:
        return _class_folders(name, dict.fromkeys(SPLITS, path), split, transform)
    test = "val" if "test" not in held else "test"
    return _class_folders(name, {"train": path / "train", "test": path / test}, split, transform)


def _class_folders(name: str, folders: dict[str, Path], split: str, transform: Transform | None) -> Dataset:
    folder = folders[split]
    if not _class_names(folder):
        raise InputError(
            f"{name}: found no class folders in {folder.resolve()} for split {split!r}; expected one sub-folder of "
            "images for each class; check the path and root"
        )
    # Use the classes of both splits, so that a class missing from one split does not shift the other labels.
    classes = tuple(sorted({c for part in folders.values() for c in _class_names(part)}))
    index = {c: i for i, c in enumerate(classes)}
    paths = sorted(_image_paths(folder))
    if not paths:
        raise InputError(f"{name}: no images in {folder.resolve()}; allowed are {', '.join(IMAGE_SUFFIXES)}")
    labels = np.array([index[p.partition("/")[0]] for p in paths], dtype=np.int64)
    source = FileSource(folder, paths)
    return from_source(source, labels, num_classes=len(classes), classes=classes, name=name, transform=transform)


def _class_names(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(e.name for e in os.scandir(folder) if e.is_dir() and not e.name.startswith("."))


def _image_paths(folder: Path) -> list[str]:
    """List the images in class folders, except hidden files, as paths relative to `folder` with forward slashes."""
    found = []
    for class_name in _class_names(folder):
        for parent, _, files in os.walk(folder / class_name, followlinks=True):
            prefix = Path(parent).relative_to(folder).as_posix()
            found += [f"{prefix}/{f}" for f in files if f.lower().endswith(IMAGE_SUFFIXES) and not f.startswith(".")]
    return found


def _npz(
    name: str, path: Path, split: str, transform: Transform | None, *, classes: tuple[str, ...] | None = None
) -> Dataset:
    if not path.is_file():
        raise InputError(f"{name}: no such file {path.resolve()}; check the path and root")
    arrays = _Archive(name, path)
    two = [s for s in SPLITS if f"{s}_images" in arrays.keys or f"{s}_jpg" in arrays.keys]
    if two and split not in two:
        raise InputError(f"{name}: no split {split!r} in {path.resolve()}; it holds {', '.join(arrays.keys)}")
    prefix = f"{split}_" if two else ""
    jpeg = f"{prefix}jpg" in arrays.keys
    label_key = "y" if jpeg else "labels"
    labels = arrays.integers(prefix + label_key)
    ids = arrays.integers(f"{prefix}ids") if f"{prefix}ids" in arrays.keys else None
    if "num_classes" in arrays.keys:
        count = arrays.read("num_classes")
        if count.ndim or count.dtype.kind not in "iu":
            raise InputError(f"{name}: num_classes is {count.dtype} {list(count.shape)}; expected one integer")
        num_classes = int(count)
    else:  # count the classes of both splits, because one may lack the last class
        counted = [arrays.integers(f"{s}_{label_key}") for s in two if f"{s}_{label_key}" in arrays.keys]
        num_classes = 1 + max(int(x.max(initial=-1)) for x in [labels, *counted])
    if not jpeg:
        _refuse_transform(name, transform)
        images = arrays.read(f"{prefix}images")
        return from_arrays(images, labels, ids, num_classes=num_classes, classes=classes, name=name)
    blob, offsets = arrays.read(f"{prefix}jpg"), arrays.integers(f"{prefix}off")
    if blob.dtype != np.uint8 or blob.ndim != 1:
        raise InputError(f"{name}: {prefix}jpg is {blob.dtype} {list(blob.shape)}; expected uint8 bytes, one dimension")
    if len(offsets) != len(labels) + 1:
        raise InputError(f"{name}: {len(offsets)} offsets for {len(labels)} labels; expected one more than labels")
    if offsets[0] < 0 or offsets[-1] > len(blob) or (np.diff(offsets) < 0).any():
        raise InputError(
            f"{name}: {prefix}off must not decrease, and stay in 0..{len(blob)}, the length of {prefix}jpg"
        )
    source = BlobSource(path, blob, offsets)
    return from_source(source, labels, ids, num_classes=num_classes, classes=classes, name=name, transform=transform)


class _Archive:
    """An npz file that is read array by array, without pickle; a missing or damaged array raises an `InputError`."""

    def __init__(self, name: str, path: Path) -> None:
        self.name, self.path = name, path
        try:
            with zipfile.ZipFile(path), np.load(path, allow_pickle=False) as npz:  # np.load alone also takes .npy files
                self.keys: list[str] = npz.files
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise InputError(
                f"{name}: {path.resolve()} is damaged or not an npz file; write it with np.savez"
            ) from error

    def read(self, key: str) -> Array:
        if key not in self.keys:
            raise InputError(
                f"{self.name}: no array {key!r} among {', '.join(self.keys) or 'none'}; expected images and labels, or "
                "jpg, off and y, all with the prefixes train_ and test_ or none"
            )
        try:
            with np.load(self.path, allow_pickle=False) as npz:
                array: Array = npz[key]
        except Exception as error:  # damaged (zlib.error, BadZipFile, EOFError, ...) or pickled objects (ValueError)
            raise InputError(f"{self.name}: array {key!r} cannot be read ({error}); save plain numbers") from error
        return array

    def integers(self, key: str) -> Array:
        return as_integers(self.read(key), f"{self.name}: {key}")


def _refuse_transform(name: str, transform: Transform | None) -> None:
    if transform is not None:
        raise InputError(f"{name} is held in memory and takes no transform; transform the batches instead")


def _torchvision_loader(class_name: str, files: str) -> Loader:
    return partial(_torchvision, class_name=class_name, files=files)


DATASETS: Mapping[str, Loader] = {
    "fashion-mnist-mini": _embedded,
    "fashion-mnist": _idx_loader("FashionMNIST", FASHION_CLASSES),
    "mnist": _idx_loader("MNIST", DIGITS),
    "cifar10": _torchvision_loader("CIFAR10", "cifar-10-batches-py"),
    "cifar100": _torchvision_loader("CIFAR100", "cifar-100-python"),
    "imagenet": _imagenet,
    "folder:PATH": _folder,
    "npz:PATH": _npz,
    "tar:PATH": load_tars,
}

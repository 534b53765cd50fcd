"""IDX files, in which MNIST and similar data sets are distributed: one of images and one of labels for each split."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np

from ..utils.errors import InputError
from .dataset import Array, ArrayDataset, from_arrays

PREFIXES = {"train": "train", "test": "t10k"}
#: the third byte of a file, its data type, and the fourth, its number of dimensions, for images and for labels
UNSIGNED_BYTES, IMAGES, LABELS = 8, 3, 1


def load_idx(name: str, root: Path, split: str, classes: tuple[str, ...], folder: str) -> ArrayDataset:
    """Load one split from files, plain or gzipped, in ``root``, ``root``/raw or torchvision's folder.

    Args:
        classes: names of the classes.
        folder: torchvision's folder, relative to ``root``.

    Raises:
        InputError: files are missing, damaged, or not of unsigned bytes in the right shape.
    """
    images = read(name, find(name, root, f"{PREFIXES[split]}-images-idx3-ubyte", folder), IMAGES)
    labels = read(name, find(name, root, f"{PREFIXES[split]}-labels-idx1-ubyte", folder), LABELS)
    return from_arrays(images, labels.astype(np.int64), num_classes=len(classes), classes=classes, name=name)


def find(name: str, root: Path, file: str, folder: str) -> Path:
    """Return the path of the first ``file`` found, plain or gzipped; InputError if there is none."""
    places = [root, root / "raw", root / folder]
    for place in places:
        for path in (place / file, place / f"{file}.gz"):
            if path.is_file():
                return path
    raise InputError(
        f"{name}: no file {file} or {file}.gz in {', '.join(str(place.resolve()) for place in places)}; nothing is "
        "downloaded: put the four files of the data set there, or pass another root"
    )


def read(name: str, path: Path, dimensions: int) -> Array:
    """Return the unsigned bytes of one file: [N, H, W] for images, [N] for labels."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{name}: {path} is damaged ({error}); download it again") from error
    header = 4 + 4 * dimensions
    if len(content) < header or tuple(content[:4]) != (0, 0, UNSIGNED_BYTES, dimensions):
        raise InputError(f"{name}: {path} is not an IDX file of unsigned bytes with {dimensions} dimension(s)")
    shape = tuple(np.frombuffer(content, ">u4", dimensions, 4).tolist())
    if len(content) - header != np.prod(shape, dtype=np.int64):
        raise InputError(
            f"{name}: {path} is damaged: {len(content) - header:,} bytes, but its header says {shape}; download it "
            "again"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)

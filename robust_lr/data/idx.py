"""The IDX files of MNIST and its relatives, as they are distributed: one file of images and one of labels per split."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np

from ..utils.errors import InputError
from .dataset import Array, ArrayDataset, from_arrays

PREFIXES = {"train": "train", "test": "t10k"}
#: the third byte of a file (its type: unsigned bytes), and the fourth: the number of dimensions of images and labels
UNSIGNED_BYTES, IMAGES, LABELS = 8, 3, 1


def load_idx(name: str, root: Path, split: str, classes: tuple[str, ...], folder: str) -> ArrayDataset:
    """Load one split; files may be compressed or not, in ``root``, in ``root``/raw, or where torchvision puts them.

    Args:
        classes: names of the classes.
        folder: torchvision's folder, below ``root``.

    Raises:
        InputError: files that are missing, damaged, or of other shapes or types.
    """
    images = read(name, find(name, root, f"{PREFIXES[split]}-images-idx3-ubyte", folder), IMAGES)
    labels = read(name, find(name, root, f"{PREFIXES[split]}-labels-idx1-ubyte", folder), LABELS)
    return from_arrays(images, labels.astype(np.int64), num_classes=len(classes), classes=classes, name=name)


def find(name: str, root: Path, file: str, folder: str) -> Path:
    """Return the first place that holds a file, plain or compressed."""
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
        raise InputError(f"{name}: {path} is damaged ({error}); fetch it anew") from error
    header = 4 + 4 * dimensions
    if len(content) < header or tuple(content[:4]) != (0, 0, UNSIGNED_BYTES, dimensions):
        raise InputError(f"{name}: {path} is not an IDX file of unsigned bytes with {dimensions} dimension(s)")
    shape = tuple(np.frombuffer(content, ">u4", dimensions, 4).tolist())
    if len(content) - header != np.prod(shape, dtype=np.int64):
        raise InputError(
            f"{name}: {path} is damaged: {len(content) - header:,} bytes where its header says {shape}; fetch it anew"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)

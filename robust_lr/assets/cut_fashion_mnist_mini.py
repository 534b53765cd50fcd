"""Cut fashion-mnist-mini.npz out of Fashion-MNIST: the first 400 training and 100 test images of each class.

    python robust_lr/assets/cut_fashion_mnist_mini.py FOLDER

FOLDER holds the four gzipped idx files of https://github.com/zalandoresearch/fashion-mnist. The cut depends on nothing
but these files, so a repetition gives the same arrays: uint8 images [N, 28, 28], uint8 labels [N], and int32 ids [N],
the index of each image in the original split, ascending.
"""

import gzip
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def read_idx(path: Path) -> Array:
    """The uint8 array in a gzipped idx file: two zero bytes, type 8, the rank, big-endian sizes, then the values."""
    with gzip.open(path) as file:
        data = file.read()
    rank = data[3]
    if data[:3] != b"\0\0\x08":
        raise SystemExit(f"{path} is not an idx file of unsigned bytes")
    return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(np.frombuffer(data, ">i4", rank, 4))


def first_per_class(labels: Array, count: int) -> Array:
    """The indices, ascending, of the first `count` images of each class."""
    return np.sort(np.concatenate([np.flatnonzero(labels == c)[:count] for c in np.unique(labels)]))


def cut_arrays(folder: Path, train: int = 400, test: int = 100) -> dict[str, Array]:
    """The arrays of the npz, with `train` and `test` images per class."""
    arrays: dict[str, Array] = {}
    for split, stem, count in (("train", "train", train), ("test", "t10k", test)):
        images, labels = (read_idx(folder / f"{stem}-{kind}-ubyte.gz") for kind in ("images-idx3", "labels-idx1"))
        ids = first_per_class(labels, count)
        arrays |= {f"{split}_images": images[ids], f"{split}_labels": labels[ids], f"{split}_ids": ids.astype(np.int32)}
    return arrays


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    np.savez_compressed(Path(__file__).parent / "fashion-mnist-mini.npz", **cut_arrays(Path(sys.argv[1])))  # type: ignore[arg-type]

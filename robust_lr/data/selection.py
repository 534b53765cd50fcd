"""Subsets of a data set: images named in a list, or a class-balanced random sample."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..utils.errors import InputError
from ..utils.rng import CHOICE, words
from .dataset import Dataset
from .encoded import FileSource, LazyDataset


def draw_balanced(labels: Tensor, ids: Tensor, n: int, *, seed: int) -> Tensor:
    """Return the sorted positions of a random sample of ``n`` images, keyed by (seed, image id); all if fewer.

    Every class gets the same number of images, except for a remainder and for classes that have too few.

    Args:
        labels, ids: int64 [N].
    """
    drawn = words(seed, CHOICE, ids, 1)[:, 0]
    order = drawn.argsort(stable=True)
    order = order[labels[order].argsort(stable=True)]  # by class, in random order within each
    counts = torch.bincount(labels)
    first = counts.cumsum(0) - counts
    rank = torch.empty_like(ids)
    rank[order] = torch.arange(len(ids)) - first[labels[order]]
    chosen = drawn.argsort(stable=True)
    return chosen[rank[chosen].argsort(stable=True)][:n].sort().values


def find_listed(data: Dataset, file: str | Path) -> Dataset:
    """Return the images whose files are named in the list ``file``, one per line; text after a name is ignored.

    A name is the end of a path, such as ``n01440764/ILSVRC2012_val_00000293.JPEG``. The name of the list and the first
    12 digits of its SHA-256 become part of the data set's name.

    Raises:
        InputError: the list cannot be read, is empty, repeats a file, or has a name that matches no file or several;
            or the data set does not consist of image files.
    """
    file = Path(file)
    if not isinstance(data, LazyDataset) or not isinstance(data.source, FileSource):
        raise InputError(f"`images_list`: {data.name} is not a folder of image files, so images cannot be named")
    try:
        content = file.read_bytes()
        names = [line.split()[0] for line in content.decode().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"`images_list` {str(file)!r} cannot be read: {error}") from None
    if not names:
        raise InputError(f"`images_list` {str(file)!r} names no image")
    paths = [data.source.paths[row] for row in data.rows.tolist()]
    known: dict[str, list[int]] = {}
    for position, path in enumerate(paths):
        parts = path.split("/")
        for at in range(len(parts)):
            known.setdefault("/".join(parts[at:]), []).append(position)
    positions: list[int] = []
    for name in names:
        found = next((known[key] for key in _endings(name) if key in known), [])
        if len(found) != 1:
            what = "is not" if not found else f"matches {len(found)}"
            raise InputError(
                f"`images_list` {str(file)!r}: {name} {what} among the {len(paths)} images of {data.name}; give the "
                "end of the path of one image"
            )
        positions += found
    if len(set(positions)) < len(positions):
        twice = next(name for name, position in zip(names, positions, strict=True) if positions.count(position) > 1)
        raise InputError(f"`images_list` {str(file)!r} names {twice} twice; name each image once")
    digest = hashlib.sha256(content).hexdigest()[:12]
    return replace(data.subset(positions), name=f"{data.name}[{file.name} {digest}]")


def _endings(name: str) -> list[str]:
    """Return the path ``name`` and its ever shorter ends, down to the last two parts."""
    parts = name.replace("\\", "/").removeprefix("./").split("/")
    return ["/".join(parts[at:]) for at in range(max(len(parts) - 1, 1))]

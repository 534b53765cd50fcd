"""Data sets in tar files with WebDataset's layout: `KEY.jpg` beside `KEY.cls`, which holds the class number.

Shards are indexed when the data set is loaded and read by random access afterwards. Order, subsets and resuming
therefore work as for every other data set. Nothing is unpacked. Keep the shards on a local disk.
"""

from __future__ import annotations

import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np

from ..utils.errors import InputError
from .dataset import Array, Dataset
from .encoded import IMAGE_SUFFIXES, Transform, from_source

CLASS_SUFFIX = ".cls"


@dataclass(frozen=True, slots=True)
class Member:
    """An image in a shard: the position of its bytes, and its class."""

    shard: Path
    name: str
    offset: int
    size: int
    label: int


@dataclass(frozen=True, eq=False)
class TarSource:
    """Images in tar files, see `encoded.Source`."""

    members: Sequence[Member]

    def open(self, row: int) -> BytesIO:
        member = self.members[row]
        with member.shard.open("rb") as file:
            file.seek(member.offset)
            return BytesIO(file.read(member.size))

    def describe(self, row: int) -> str:
        return f"{self.members[row].name} in {self.members[row].shard}"

    def fingerprint(self, row: int) -> bytes:
        # Only names and sizes, as for files in folders.
        member = self.members[row]
        return f"{member.shard.name}/{member.name}\0{member.size}\0".encode()


def load_tars(name: str, folder: Path, split: str, transform: Transform | None) -> Dataset:
    """Load one split from `folder`/train*.tar or `folder`/test*.tar (or val*.tar).

    If no shard has such a name, all shards are both splits. An image's id is its index in the shards, sorted by name.
    """
    shards = sorted(folder.glob("*.tar")) if folder.is_dir() else []
    if not shards:
        raise InputError(f"{name}: no *.tar files in {folder.resolve()}; check the path and root")
    by_split = {s: [f for f in shards if f.name.startswith(s)] for s in ("train", "test", "val")}
    by_split["test"] = by_split["test"] or by_split.pop("val")
    if not by_split["train"] and not by_split["test"]:
        by_split = {"train": shards, "test": shards}
    if not by_split[split]:
        raise InputError(f"{name}: no shards of split {split!r} in {folder.resolve()}; expected {split}*.tar")
    members = {s: index(name, tuple(files)) for s, files in by_split.items() if s in ("train", "test")}
    labels: Array = np.array([member.label for member in members[split]], dtype=np.int64)
    count = 1 + max(member.label for each in members.values() for member in each)
    return from_source(TarSource(members[split]), labels, num_classes=count, name=name, transform=transform)


def index(name: str, shards: Sequence[Path]) -> list[Member]:
    """Index the images of `shards`, in order.

    Raises `InputError` for a damaged shard, an image without a class, a class that is no number, or no image at all.
    """
    found: list[Member] = []
    for shard in shards:
        images: dict[str, tarfile.TarInfo] = {}
        classes: dict[str, int] = {}
        try:
            with shard.open("rb") as raw:  # tarfile reads a truncated archive as a shorter one: check its end
                raw.seek(max(0, shard.stat().st_size - tarfile.BLOCKSIZE))
                if raw.read().strip(b"\0"):
                    raise tarfile.ReadError("its end is missing")
            with tarfile.open(shard, "r:") as tar:
                for member in tar:
                    key, suffix = split_name(member.name)
                    if member.isfile() and suffix == CLASS_SUFFIX:
                        file = tar.extractfile(member)
                        classes[key] = as_class(b"" if file is None else file.read(20), member.name, shard)
                    elif member.isfile() and suffix in IMAGE_SUFFIXES:
                        images[key] = member
        except (tarfile.TarError, OSError, EOFError) as error:
            raise InputError(f"{name}: {shard} is truncated or not an uncompressed tar file ({error})") from error
        for key, image in images.items():
            if key not in classes:
                raise InputError(
                    f"{name}: {image.name} in {shard} has no class; expected {key}{CLASS_SUFFIX} beside it"
                )
            found.append(Member(shard, image.name, image.offset_data, image.size, classes[key]))
    if shards and not found:
        raise InputError(f"{name}: no images in {shards[0]}; allowed are {', '.join(IMAGE_SUFFIXES)}")
    return found


def split_name(name: str) -> tuple[str, str]:
    """Split a path at the first dot of its last part into key and suffix, as WebDataset does."""
    folder, slash, file = name.rpartition("/")
    key, dot, suffix = file.partition(".")
    return f"{folder}{slash}{key}", f"{dot}{suffix}".lower()


def as_class(content: bytes, name: str, shard: Path) -> int:
    text = content.strip()
    if not text.isdigit():
        raise InputError(f"{name} in {shard} holds {text[:20]!r}; it must hold a class number, from 0")
    return int(text)

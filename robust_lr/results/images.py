"""The adversarial images behind an evaluation's rows, saved in safetensors shards below its folder.

During an evaluation, images are written in parts, before their rows enter the ledger, so that every row has its image.
At the end the parts are rewritten as shards ordered by id, which are the same files even if the evaluation was
interrupted. Both steps can be repeated at any time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..data.dataset import to_unit_range
from ..utils.errors import InputError, RunError
from ..utils.files import write_atomic

#: name of the folder within an evaluation's folder
IMAGES = "images"

#: maximum number of images, and of bytes of float32 pixels, in a shard
MAX_SHARD_IMAGES, MAX_SHARD_BYTES = 1000, 2**26

_FORMAT = json.dumps({"format": "robust-lr adversarial images", "version": 1})


def round_to_levels(pixels: Tensor) -> Tensor:
    """Round pixels in [0, 1] to the 256 levels of an 8-bit image; returns uint8."""
    return (pixels * 255).round().to(torch.uint8)


def write_part(folder: Path, ids: Tensor, labels: Tensor, pixels: Tensor) -> None:
    """Write finished images atomically; RunError if they cannot be written.

    Args:
        ids, labels: int64 [n].
        pixels: float32 [n, C, H, W] in [0, 1].
    """
    order = ids.argsort()
    _write(folder / f"part-{int(ids.min())}.safetensors", ids[order], labels[order], pixels[order])


def _write(path: Path, ids: Tensor, labels: Tensor, pixels: Tensor) -> None:
    pixels = pixels.contiguous()
    tensors = {
        "ids": ids,
        "labels": labels,
        "float32": pixels,
        "uint8": round_to_levels(pixels),
        "sha256": torch.tensor([list(hashlib.sha256(image.numpy().tobytes()).digest()) for image in pixels]).byte(),
    }
    try:
        write_atomic(path, save({name: t.contiguous() for name, t in tensors.items()}, metadata={"about": _FORMAT}))
    except OSError as error:
        raise RunError(
            f"{path}: {error.strerror}; images and rows written before are safe, continue with `resume`"
        ) from None


def gather(sources: Sequence[Path], out: Path, ids: Iterable[int]) -> None:
    """Collect the images with ``ids`` from the folders ``sources`` into shards in ``out``, then delete the parts.

    Raises:
        InputError: an image is missing or damaged.
        RunError: a shard cannot be written.
    """
    place = {
        id_: (file, row)
        for source in sources
        for file in sorted(source.glob("*.safetensors"))
        for row, id_ in enumerate(_column(file, "ids").tolist())
    }
    wanted = sorted(ids)
    missing = [id_ for id_ in wanted if id_ not in place]
    if missing:
        raise InputError(
            f"{sources[0]} lacks {len(missing)} adversarial images, the first with id {missing[0]}: evaluate again "
            "with `fresh`"
        )
    shape = _column(place[wanted[0]][0], "float32").shape[1:]
    size = max(1, min(MAX_SHARD_IMAGES, MAX_SHARD_BYTES // (4 * shape.numel())))
    groups = [wanted[i : i + size] for i in range(0, len(wanted), size)]
    names = [f"adversarial-{n:05d}-of-{len(groups):05d}.safetensors" for n in range(1, len(groups) + 1)]
    for name, group in zip(names, groups, strict=True):
        labels, pixels = torch.empty(len(group), dtype=torch.int64), torch.empty(len(group), *shape)
        by_file: dict[Path, list[tuple[int, int]]] = {}
        for position, id_ in enumerate(group):
            file, row = place[id_]
            by_file.setdefault(file, []).append((position, row))
        for file, pairs in by_file.items():
            to, rows = (torch.tensor(column) for column in zip(*pairs, strict=True))
            part = _read(file)
            labels[to], pixels[to] = part.labels[rows], part.float32[rows]
        _write(out / name, torch.tensor(group), labels, pixels)
    for file in out.glob("*.safetensors"):
        if file.name not in names:
            file.unlink()


def remove_images(folder: Path) -> None:
    """Delete the images of an earlier evaluation."""
    for file in folder.glob("*.safetensors"):
        file.unlink()


@dataclass(frozen=True, eq=False, kw_only=True)
class SavedImages:
    """The images of one shard.

    Attributes:
        ids, labels: int64 [n].
        float32: pixels [n, C, H, W] in [0, 1], as the model classified them.
        uint8: the same pixels rounded to 256 levels.
    """

    ids: Tensor
    labels: Tensor
    float32: Tensor
    uint8: Tensor

    def pixels(self, is_rounded: bool) -> Tensor:
        """Return pixels float32 [n, C, H, W] in [0, 1], either exact or rounded to 256 levels."""
        return to_unit_range(self.uint8) if is_rounded else self.float32


def read_images(run: Path) -> Iterator[SavedImages]:
    """Yield the saved images of an evaluation shard by shard, ordered by id.

    Raises:
        InputError: no images were saved, the evaluation is unfinished, or a file is damaged.
    """
    folder = run / IMAGES
    if not folder.is_dir():
        raise InputError(f"{run} holds no adversarial images: evaluate again and save them with `images`")
    files = sorted(folder.glob("adversarial-*.safetensors"))
    count = int(files[0].stem.rpartition("-")[2]) if files else 0
    if not files or len(files) != count or list(folder.glob("part-*")):
        raise InputError(f"{folder} is not complete: run the same command again to finish the evaluation")
    yield from map(_read, files)


def _column(file: Path, name: str) -> Tensor:
    try:
        with safe_open(file, framework="pt") as opened:
            tensor: Tensor = opened.get_tensor(name)
    except (OSError, SafetensorError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{file} is damaged ({reason}): evaluate again with `fresh`") from None
    return tensor


def _read(file: Path) -> SavedImages:
    names = ("ids", "labels", "float32", "uint8", "sha256")
    ids, labels, pixels, levels, digests = (_column(file, name) for name in names)
    for id_, image, digest in zip(ids.tolist(), pixels, digests, strict=True):
        if hashlib.sha256(image.numpy().tobytes()).digest() != bytes(digest.tolist()):
            raise InputError(f"{file}: image {id_} does not match its saved hash: evaluate again with `fresh`")
    return SavedImages(ids=ids, labels=labels, float32=pixels, uint8=levels)

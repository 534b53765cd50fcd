"""The section with saved adversarial images and their transfer to other models."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import torch
from PIL import Image
from torch import Tensor

from ... import data as data_room
from ...data.dataset import Dataset
from ...results.ledger import Row
from ...utils.errors import InputError
from ...utils.statistics import Proportion
from ..blocks import Block, Cell, Column, Example, Gallery, Picture, Plot, Point, Section, Series, Table, share_cell
from ..collect import Found
from ..record import Group, Report
from .headline import is_attack

#: maximum number of examples per evaluation, and of evaluations with examples
MAX_EXAMPLES, MAX_GALLERIES = 4, 6

#: maximum side of an image in pixels; larger images are shrunk
MAX_SIDE = 96

FOLDER, TRANSFER = "images", "transfer.json"


def images(report: Report) -> Section | None:
    """Return the section with galleries and transfer matrices; None without saved images."""
    blocks: list[Block] = []
    for group in report.groups:
        for model, found in group.members.items():
            if is_attack(group) and (found.folder / FOLDER).is_dir() and len(blocks) < MAX_GALLERIES:
                blocks.append(gallery(group, model, found))
    files = dict.fromkeys(file for found in report.evaluations for file in found.root.rglob(TRANSFER))
    for number, file in enumerate(files, start=1):
        blocks += transfer(file, number)
    if not blocks:
        return None
    return Section(
        key="images",
        title="Images",
        text="Clean image, perturbation and adversarial image. The perturbation is scaled: gray is no change, "
        "black and white are the largest changes within eps. Transfer is the accuracy of each model on the adversarial "
        "images of another.",
        blocks=blocks,
    )


def gallery(group: Group, model: str, found: Found) -> Gallery:
    """Return a few evenly spaced images that the attack broke, or that withstood it if it broke none."""
    rows = found.evaluation.rows
    broken = [row for row in rows if row.clean == row.label and not row.robust] or list(rows)
    chosen = [broken[at * len(broken) // MAX_EXAMPLES] for at in range(MAX_EXAMPLES)]
    chosen = list({row.id: row for row in chosen}.values())
    adversarial = read_adversarial(found.folder, {row.id for row in chosen})
    clean = read_originals(str(found.record["data"]), chosen)
    eps = float(group.protocol.get("eps") or 1.0)
    return Gallery(
        title=f"{model} under {group.name} on {group.data}",
        note=f"{len(chosen)} of the {len(broken):,} images that the attack broke, of {group.n:,} in all.",
        examples=[
            Example(
                pictures=pictures(row, clean.get(row.id), adversarial[row.id], eps),
                words=words(row),
                rows=f"{found.number}:pair:{row.label}:{row.adversarial}",
            )
            for row in chosen
            if row.id in adversarial
        ],
    )


def words(row: Row) -> str:
    target = "" if row.target is None else f", target {row.target}"
    return (
        f"Image {row.id}: class {row.label}, predicted {row.clean} when clean, {row.adversarial} under attack{target}"
    )


def read_adversarial(folder: Path, ids: set[int]) -> dict[int, Tensor]:
    """Read saved adversarial images [C, H, W], float32 in [0, 1], by id; InputError for a damaged file."""
    out: dict[int, Tensor] = {}
    for file in sorted((folder / FOLDER).glob("*.safetensors")):
        try:
            with safetensors.safe_open(file, "pt") as content:
                found = content.get_tensor("ids").tolist()
                places = {id_: place for place, id_ in enumerate(found) if id_ in ids}
                pixels = content.get_slice("float32")
                out |= {id_: pixels[place : place + 1][0] for id_, place in places.items()}
        except (safetensors.SafetensorError, OSError) as error:
            raise InputError(f"{file} cannot be read: {error}") from None
    return out


def read_originals(name: str, rows: Sequence[Row]) -> dict[int, Tensor]:
    """Read clean images [C, H, W] by id from the data set ``name``, if it is available and has the rows' pixels."""
    try:
        data: Dataset = data_room.load(name, "test")
    except (InputError, OSError):
        return {}
    places = {id_: place for place, id_ in enumerate(data.ids.tolist())}
    wanted = [row for row in rows if row.id in places]
    if not wanted:
        return {}
    pixels = data.batch(torch.tensor([places[row.id] for row in wanted]))[0]
    return {
        row.id: image
        for row, image in zip(wanted, pixels, strict=True)
        if hashlib.sha256(image.numpy().tobytes()).hexdigest().startswith(row.input_hash)
    }


def pictures(row: Row, clean: Tensor | None, adversarial: Tensor, eps: float) -> list[Picture]:
    """Return pictures of clean image, perturbation and adversarial image; only the last without a clean image."""
    shown = Picture(png=png(adversarial), alt=f"image {row.id} under attack, predicted {row.adversarial}")
    if clean is None:
        return [shown]
    change = ((adversarial - clean) / (2 * eps) + 0.5).clamp(0, 1)
    return [
        Picture(png=png(clean), alt=f"clean image {row.id}, class {row.label}"),
        Picture(png=png(change), alt=f"perturbation of image {row.id}, scaled"),
        shown,
    ]


def png(image: Tensor) -> str:
    """Encode pixels [C, H, W] in [0, 1] as a base64-encoded PNG."""
    levels = (image * 255).round().to(torch.uint8)
    array = levels[0].numpy() if len(levels) == 1 else levels[:3].permute(1, 2, 0).numpy()
    picture = Image.fromarray(array)
    picture.thumbnail((MAX_SIDE, MAX_SIDE))
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def transfer(file: Path, number: int) -> list[Block]:
    """Return a transfer matrix as a table and as a plot; InputError if the file is damaged."""
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        names = [str(name) for name in record["models"]]
        shares = [[accuracy(score) for score in line] for line in record["scores"]]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} is not a transfer matrix: {error}; write it again with robust-lr transfer") from None
    title = f"Transfer, {file.parent.as_posix()}"
    n = shares[0][0].n
    table = Table(
        key=f"transfer-{number}",
        title=title,
        note=f"Accuracy in % of the model of a column on the {n:,} images that were made for the model of a row.",
        columns=[Column("made for", figures=False), *(Column(name, "accuracy") for name in names)],
        rows=[[Cell(text=name), *map(share_cell, line)] for name, line in zip(names, shares, strict=True)],
    )
    series = [
        Series(
            name,
            [
                Point(share.value or 0.0, 0.0, *share.interval, f"made for {name}, judged by {other}: {share}")
                for other, share in zip(names, line, strict=True)
            ],
        )
        for name, line in zip(names, shares, strict=True)
    ]
    plot = Plot(
        key=f"transfer-{number}",
        kind="heat",
        title=title,
        summary=" ".join(point.words + "." for line in series for point in line.points),
        x_label=f"accuracy in %; rows: made for, columns: judged by; n = {n:,}",
        y_label="",
        series=series,
        ticks=[(float(at), name) for at, name in enumerate(names)],
    )
    return [table, plot]


def accuracy(score: Mapping[str, Any]) -> Proportion:
    n = int(score["denominators"]["accuracy"])
    return Proportion(round(float(score["accuracy"]) * n), n)

"""The section with images under attack that evaluations kept, and their transfer to other models."""

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

#: largest number of examples of an evaluation, and of evaluations on a page
MAX_EXAMPLES, MAX_GALLERIES = 4, 6

#: pixels of the longer side of a picture; larger ones are shrunk
MAX_SIDE = 96

FOLDER, TRANSFER = "images", "transfer.json"


def images(report: Report) -> Section | None:
    """Show galleries and transfer matrices."""
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
        "black and white are the largest that eps allows. Transfer is the accuracy of each model on the images that "
        "were made to fool another.",
        blocks=blocks,
    )


def gallery(group: Group, model: str, found: Found) -> Gallery:
    """Show a few images that the attack broke, evenly spaced, or that withstood it where it broke none."""
    rows = found.evaluation.rows
    broken = [row for row in rows if row.clean == row.label and not row.robust] or list(rows)
    chosen = [broken[at * len(broken) // MAX_EXAMPLES] for at in range(MAX_EXAMPLES)]
    chosen = list({row.id: row for row in chosen}.values())
    adversarial = read_adversarial(found.folder, {row.id for row in chosen})
    clean = read_originals(str(found.record["data"]), chosen)
    eps = float(group.protocol.get("eps") or 1.0)
    return Gallery(
        title=f"{model} under {group.name} on {group.data}",
        note=f"{len(chosen)} of the {len(broken):,} images that were right when clean and fell, of {group.n:,} in all.",
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
    """Read adversarial images [C, H, W] by id, as the evaluation kept them; InputError for a damaged file."""
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
    """Read clean images by id from a data set that its name alone finds, if the pixels are those of the rows."""
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
    """Make pictures of clean image, perturbation and adversarial image; the last alone if the first is not known."""
    shown = Picture(png=png(adversarial), alt=f"image {row.id} under attack, predicted {row.adversarial}")
    if clean is None:
        return [shown]
    change = ((adversarial - clean) / (2 * eps) + 0.5).clamp(0, 1)
    return [
        Picture(png=png(clean), alt=f"image {row.id} as it is, class {row.label}"),
        Picture(png=png(change), alt=f"perturbation of image {row.id}, scaled"),
        shown,
    ]


def png(image: Tensor) -> str:
    """Encode pixels [C, H, W] in [0, 1] as a PNG in base 64."""
    levels = (image * 255).round().to(torch.uint8)
    array = levels[0].numpy() if len(levels) == 1 else levels[:3].permute(1, 2, 0).numpy()
    picture = Image.fromarray(array)
    picture.thumbnail((MAX_SIDE, MAX_SIDE))
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def transfer(file: Path, number: int) -> list[Block]:
    """Show the matrix of a transfer between models, as a table and as a plot."""
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        names = [str(name) for name in record["models"]]
        shares = [[accuracy(score) for score in line] for line in record["scores"]]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} holds no transfer matrix: {error}") from None
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

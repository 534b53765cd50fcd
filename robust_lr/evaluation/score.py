"""Judge saved adversarial images again, by the model that they were made for or by any other (transfer)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..models.checkpoint import weights_hash
from ..results.images import SavedImages, read_images
from ..results.result import figures
from ..results.stored import Evaluation, read_evaluation
from ..utils.contexts import device_of, fp32, frozen
from ..utils.errors import InputError
from ..utils.statistics import Proportion
from .model_under_test import check_finite, check_logits, in_float32, unwrap_logits

#: number of rows of a pass if the evaluation's passes had no fixed size
DEFAULT_ROWS = 64


@dataclass(frozen=True, kw_only=True)
class Score:
    """Accuracy of a model on the adversarial images that an evaluation saved.

    Attributes:
        model, run: name of the model, and folder of the evaluation.
        made_for: name of the model that the images were made for.
        same_weights: whether the judging model has the weights of that model.
        accuracy, rounded: accuracy on the images as they were judged, and rounded to 256 levels.
        success: for a targeted attack, share of all images that are predicted as the target.
        predictions: (id, label, prediction, prediction for the rounded image).
    """

    model: str
    run: Path
    made_for: str
    same_weights: bool
    accuracy: Proportion
    rounded: Proportion
    success: Proportion | None
    predictions: tuple[tuple[int, int, int, int], ...]

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, without the predictions."""
        shares = {"accuracy": self.accuracy, "accuracy_rounded": self.rounded, "target_success": self.success}
        return {
            "schema": 1,
            "model": self.model,
            "run": str(self.run),
            "made_for": self.made_for,
            "same_weights": self.same_weights,
            **figures({name: share for name, share in shares.items() if share is not None}),
        }


def score(run: str | Path, model: nn.Module, *, name: str | None = None) -> Score:
    """Judge the adversarial images in ``run`` by ``model``, without attacking.

    Args:
        run: folder of an evaluation that saved its images.
        model: pixels in [0, 1] -> logits, on the device to use; left unchanged.
        name: name of the model in reports.

    Raises:
        InputError: no saved images, damaged ones, or a model that does not fit them.
        RunError: logits that are not finite.
    """
    evaluation = read_evaluation(run)
    rows = evaluation.configuration["compute_batch"] or DEFAULT_ROWS
    classes, device = evaluation.configuration["classes"], device_of(model)
    found: list[tuple[int, int, int, int]] = []
    with frozen(model), fp32(device):
        judge: nn.Module | None = None
        for images in read_images(evaluation.folder):
            if judge is None:
                judge = in_float32(
                    unwrap_logits(model, images.float32[:1].to(device))[0], images.float32[:1].to(device)
                )[0]
            predicted = [
                predict_classes(judge, images, is_rounded, rows, classes, device) for is_rounded in (False, True)
            ]
            columns = (images.ids, images.labels, *predicted)
            found += zip(*(column.tolist() for column in columns), strict=True)
    targets = {row.id: row.target for row in evaluation.rows if row.target is not None}
    n = len(found)
    reached = sum(targets.get(id_) == prediction for id_, _, prediction, _ in found)
    return Score(
        model=name or type(model).__name__,
        run=evaluation.folder,
        made_for=evaluation.record["model"],
        same_weights=weights_hash(model) == evaluation.record["weights_sha256"],
        accuracy=Proportion(sum(label == prediction for _, label, prediction, _ in found), n),
        rounded=Proportion(sum(label == prediction for _, label, _, prediction in found), n),
        success=Proportion(reached, n) if targets else None,
        predictions=tuple(found),
    )


def predict_classes(
    model: nn.Module, images: SavedImages, is_rounded: bool, rows: int, classes: int, device: torch.device
) -> Tensor:
    """Predict classes, [n], in passes of ``rows`` images that are padded like those of the evaluation."""
    out = []
    for x, ids in zip(torch.split(images.pixels(is_rounded), rows), torch.split(images.ids, rows), strict=True):
        padded = torch.cat([x, x[:1].expand(rows - len(x), *x.shape[1:])]).to(device)
        try:
            with torch.no_grad():
                logits = model(padded)[: len(x)]
        except Exception as error:  # users' code may raise anything
            reason = str(error).partition("\n")[0]
            raise InputError(f"the model fails on images {tuple(x.shape)}: {type(error).__name__}: {reason}") from error
        check_logits(logits, len(x), classes)
        check_finite(logits, ids)
        out.append(logits.argmax(1).cpu())
    return torch.cat(out)


@dataclass(frozen=True)
class Transfer:
    """Accuracy of each model on the images made for each: ``scores[i][j]`` is model j on the images of run i."""

    names: tuple[str, ...]
    scores: tuple[tuple[Score, ...], ...]

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "schema": 1,
            "models": list(self.names),
            "scores": [[score.to_dict() for score in row] for row in self.scores],
        }


def transfer(runs: Sequence[str | Path], models: Mapping[str, nn.Module]) -> Transfer:
    """Compute the N x N transfer matrix between the models that ``runs`` attacked, without attacking again.

    Args:
        runs: folders of evaluations of the same images that saved their adversarial images.
        models: the models by name, in the order of ``runs``.

    Raises:
        InputError: runs on different images, weights other than those that were attacked, or as ``score``.
    """
    found = [read_evaluation(run) for run in runs]
    check_runs(found)
    if len(models) != len(found):
        raise InputError(f"{len(found)} runs and {len(models)} models: each run needs its model, with a unique name")
    for evaluation, (name, model) in zip(found, models.items(), strict=True):
        if weights_hash(model) != evaluation.record["weights_sha256"]:
            raise InputError(f"model {name!r} does not have the weights that {evaluation.folder} attacked")
    scores = [tuple(score(e.folder, model, name=name) for name, model in models.items()) for e in found]
    return Transfer(tuple(models), tuple(scores))


def check_runs(found: Sequence[Evaluation]) -> None:
    """Raise InputError unless there are two evaluations or more, each given once, of the same images."""
    if len(found) < 2:
        raise InputError("transfer needs two runs or more")
    folders = [evaluation.folder.resolve() for evaluation in found]
    for evaluation, folder in zip(found, folders, strict=True):
        if folders.count(folder) > 1:
            raise InputError(f"{evaluation.folder} is given twice: give each run once")
    for evaluation in found[1:]:
        for key in ("images_sha256", "n"):
            if evaluation.record[key] != found[0].record[key]:
                raise InputError(
                    f"{found[0].folder} and {evaluation.folder} are of different images: {key} is "
                    f"{found[0].record[key]!r} in the first, {evaluation.record[key]!r} in the second"
                )

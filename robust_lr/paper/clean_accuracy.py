"""Top-1 and top-5 accuracy on clean images, with the network's cost."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..data.dataset import Dataset, content_hash
from ..models.checkpoint import weights_hash
from ..models.cost import profile
from ..training.validation import top_k
from ..utils.contexts import device_of
from ..utils.files import write_json
from ..utils.provenance import device_name, versions
from ..utils.statistics import Proportion

ACCURACY = "accuracy.json"

#: name of the result in a table without attacks
CLEAN = "clean"


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Accuracy of one network on the clean test images.

    Attributes:
        data: name of the data set.
        top1, top5: accuracies; ``top5`` is None with 5 classes or fewer, where it would always be 1.
        parameters: number of parameters.
        multiply_adds: number of multiply-adds for one image, see ``models.cost``.
        hashes: SHA-256 of the weights and of the images, by name.
    """

    data: str
    top1: Proportion
    top5: Proportion | None
    parameters: int
    multiply_adds: int
    hashes: dict[str, str]
    versions: dict[str, str]
    device: str

    @property
    def n(self) -> int:
        return self.top1.n

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form; accuracies are fractions, intervals are [low, high]."""
        shares = {"top1": self.top1, **({} if self.top5 is None else {"top5": self.top5})}
        record = {key: value for key, value in asdict(self).items() if key not in ("top1", "top5", "hashes")}
        return {
            "schema": 1,
            "n": self.n,
            **{name: share.value for name, share in shares.items()},
            "intervals": {name: list(share.interval) for name, share in shares.items()},
            **record,
            **{f"{name}_sha256": value for name, value in self.hashes.items()},
        }


def measure(model: nn.Module, data: Dataset, folder: Path | None = None, *, workers: int = 0) -> Accuracy:
    """Measure top-1 and top-5 accuracy of ``model`` on ``data``, and write ``accuracy.json`` to ``folder``."""
    device = device_of(model)
    about: dict[str, Any] = {
        "data": data.name,
        "hashes": {"weights": weights_hash(model), "images": content_hash(data)},
        "versions": versions(),
        "device": device_name(device),
    }
    cost = profile(model, torch.zeros(1, *data.image_shape, device=device))
    about |= {"parameters": cost.parameters, "multiply_adds": cost.multiply_adds}
    wanted = (1, 5) if data.num_classes > 5 else (1,)
    top1, *rest = top_k(model, data, wanted, workers=workers)
    result = Accuracy(top1=top1, top5=rest[0] if rest else None, **about)
    if folder is not None:
        write_json(folder / ACCURACY, result.to_dict())
    return result

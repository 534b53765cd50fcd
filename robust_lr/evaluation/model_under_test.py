"""The model under test: the one that judges, the one that gradients go through, and passes of fixed size."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..attacks.arguments import within
from ..attacks.losses import cross_entropy
from ..attacks.stepwise import look
from ..models.outputs import LogitsOf, logits_of
from ..protocols.base import StepwiseProtocol
from ..utils.contexts import Model
from ..utils.errors import InputError, RunError


@dataclass(frozen=True)
class Bench:
    """One model under evaluation.

    Args:
        model: pixels [N, C, H, W] in [0, 1] -> logits [N, num_classes]; verdicts come from it.
        attacked: computes the same function; gradients come from it.
        rows: the most rows of a pass.
        fixed: every pass has just so many, padded if need be. Where a library rounds differently for another batch
            shape, this makes an image's arithmetic independent of the images beside it.
        patience: steps between looks at which images are decided; on a GPU each look makes the host wait.
        precision: context of the passes of ``attacked``.
        keep_images: rows carry the images that their verdicts are judged on, as the column "finished".
        sizes: numbers of rows, increasing, with which ``attacked`` gives the same bits as with ``rows``.
        places: whether ``model`` gives an image the same bits in every place of a pass, as far as was seen.
        surrogate: name and hash of the network that ``attacked`` is where it is another one; predictions on the way say
            nothing then.
        cycles: ``cycle_end.ON`` if attacks end early where iterates come back, else why they do not.
    """

    model: Model
    attacked: nn.Module
    num_classes: int
    seed: int
    rows: int
    fixed: bool
    patience: int
    precision: Callable[[], AbstractContextManager[object]]
    sizes: tuple[int, ...] = ()
    places: bool = True
    cycles: str = "off: not wanted"
    keep_images: bool = False
    surrogate: Mapping[str, str] | None = None

    @property
    def is_keyed(self) -> bool:
        """True if what the model answers is a function of the image and, where it is random, of seed and id."""
        return True

    @property
    def randomness(self) -> dict[str, Any] | None:
        """How a random model draws and is judged, for the result; None for a deterministic one."""
        return None

    def passes(self, part: StepwiseProtocol) -> tuple[int, int]:
        """Forward and backward passes that one query of ``part`` takes."""
        return part.passes(self.num_classes)

    def rows_for(self, n: int) -> int:
        """Rows of a pass of ``attacked`` that shows it ``n`` images."""
        return next((size for size in self.sizes if size >= n), self.rows)

    def verdicts(self, x: Tensor, ids: Tensor, moments: Tensor) -> Tensor:
        """Logits that a verdict on ``x`` rests on, [passes, N, num_classes]; errors as ``logits``.

        ``moments`` [N] differ for each look at an image; they key what a random model draws.
        """
        return self.logits(x, ids)[None]

    def look(
        self, part: StepwiseProtocol, query: Tensor, rows: Mapping[str, Tensor], targets: Tensor | None, gradient: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, objective and its gradient at ``query``, as ``stepwise.look``, through the attacked model."""
        return part.look(self.attacked, query, rows, targets, gradient, seed=self.seed)

    def logits(self, x: Tensor, ids: Tensor) -> Tensor:
        """Logits of the model that judges, [N, num_classes], for at most ``rows`` images; checked for shape and NaN.

        Raises:
            InputError: logits of another shape.
            RunError: logits that are not finite; names the image.
        """
        with torch.no_grad(), self.failures_named(x, ids):
            logits = self.model(self.padded(x))[: len(x)]
        check_logits(logits, len(x), self.num_classes)
        check_finite(logits, ids)
        return logits

    def failures_named(self, x: Tensor, ids: Tensor) -> AbstractContextManager[None]:
        """See ``failures_named``; images are looked at in passes of the usual number of rows."""
        return failures_named(lambda image: self.model(self.padded(image)), x, ids)

    def padded(self, column: Tensor, rows: int | None = None) -> Tensor:
        """``column`` with its first row repeated behind it until it has ``rows`` rows, where passes are fixed.

        Without ``rows``, it is those of every pass.
        """
        missing = (self.rows if rows is None else rows) - len(column) if self.fixed else 0
        return torch.cat([column, column[:1].expand(missing, *column.shape[1:])]) if missing > 0 else column


#: numbers of rows that a pass may be padded to instead of all of them
SIZES = (4, 8, 16, 32)


def equal_sizes(model: Model, x: Tensor, labels: Tensor) -> tuple[int, ...]:
    """The numbers of rows of ``SIZES`` with which a pass gives an image the bits that it has among all of ``x``.

    Logits with and without a gradient, and the gradient, are compared, in other places of the batch. Libraries choose
    the order of their sums by the shape alone, so what holds for these images holds for others.
    """
    with torch.no_grad():
        plain = model(x)
    logits, _, gradient = look(model, x, labels, None, cross_entropy)
    found = []
    for n in SIZES:
        if n >= len(x):
            break
        few, its_labels = x[:n].flip(0), labels[:n].flip(0)
        with torch.no_grad():
            same = torch.equal(model(few).flip(0), plain[:n])
        some_logits, _, slopes = look(model, few, its_labels, None, cross_entropy)
        if same and torch.equal(some_logits.flip(0), logits[:n]) and torch.equal(slopes.flip(0), gradient[:n]):
            found.append(n)
    return tuple(found)


def gives_places_equal_bits(model: Model, x: Tensor) -> bool:
    """Return True if the logits of ``x`` are the same to the bit one place on in the batch.

    Libraries' products of few rows may take them in blocks, and the last block sums in another order.
    """
    with torch.no_grad():
        return torch.equal(model(x.roll(1, 0)), model(x).roll(1, 0))


class InFloat32(nn.Module):
    """A model of another floating dtype: images reach it in the dtype that it takes, logits leave it in float32.

    Args:
        model: pixels -> logits.
        takes: dtype of its images.
    """

    def __init__(self, model: nn.Module, takes: torch.dtype):
        super().__init__()
        self.model, self.takes = model, takes

    def forward(self, x: Tensor) -> Tensor:
        logits = self.model(x.to(self.takes))
        return logits.float() if isinstance(logits, Tensor) and logits.is_floating_point() else logits


def copied(model: nn.Module) -> nn.Module | None:
    """A copy that has seen what ``model`` has, and sees no more; None where there can be none."""
    try:
        return copy.deepcopy(model)
    except Exception:  # anybody's code: generators, locks, modules of C
        return None


def taken_out(model: nn.Module, x: Tensor) -> tuple[nn.Module, str]:
    """``model``, wrapped if its logits come inside something else; and where they are, see ``outputs.logits_of``.

    Raises:
        InputError: an object whose logits are no tensor.
    """
    own = [parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()]
    for takes in dict.fromkeys([torch.float32, *own]):
        try:
            with torch.no_grad():
                output = model(x.to(takes))
        except Exception:  # anybody's code; one that fails for every dtype fails again where it is reported
            continue
        logits, place = logits_of(output)
        return (model if logits is output else LogitsOf(model).eval()), place
    return model, "logits"


def in_float32(model: nn.Module, x: Tensor) -> tuple[nn.Module, torch.dtype]:
    """``model``, wrapped if it takes images or gives logits of another floating dtype; and the dtype of its logits.

    A model that fails in its own way, or returns something else, is left to the guards.
    """
    own = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    for takes in dict.fromkeys([torch.float32, *sorted(own, key=str)]):
        try:
            with torch.no_grad():
                logits = model(x.to(takes))
        except Exception:  # anybody's code; one that fails for every dtype fails again where it is reported
            continue
        if not isinstance(logits, Tensor) or not logits.is_floating_point():
            break
        if takes == logits.dtype == torch.float32:
            return model, logits.dtype
        return InFloat32(model, takes).eval(), logits.dtype
    return model, torch.float32


def check_logits(logits: Tensor, n: int, num_classes: int) -> None:
    if logits.shape != (n, num_classes):
        raise InputError(
            f"the model returns {tuple(logits.shape)} for {n} images; the data set has {num_classes} classes, "
            f"so logits [{n}, {num_classes}] are needed"
        )


def verified(x: Tensor, x_adv: Tensor, ids: Tensor, eps: float, norm: str) -> Tensor:
    """Distances of x_adv from x, [N], once it is sure that none exceeds eps and every pixel is in [0, 1].

    Raises:
        RunError: one does; names the image.
    """
    distance, near = within(x, x_adv, eps, norm)
    low, high = x_adv.flatten(1).aminmax(dim=1)
    wrong = ~((low >= 0) & (high <= 1) & near)  # so that NaN is wrong too
    if wrong.any():
        raise RunError(
            f"the attack left its bounds on image {int(ids[wrong][0])}: distance {float(distance[wrong][0]):.6g}, "
            f"eps {eps:.6g}; are the model's gradients finite?"
        )
    return distance


def check_finite(logits: Tensor, ids: Tensor) -> None:
    """RunError, which names the image, unless every logit [N, classes] is finite."""
    broken = ~logits.isfinite().all(dim=1)
    if broken.any():
        raise RunError(f"the model's logits for image {int(ids[broken][0])} are not finite")


@contextmanager
def failures_named(model: Model, x: Tensor, ids: Tensor) -> Iterator[None]:
    """Turn whatever a model raises, SystemExit included, into a RunError that names the image.

    Args:
        model: is asked about each image alone once it has failed.
        x, ids: the images [n, C, H, W] that it is asked about, and their ids [n].
    """
    try:
        yield
    except (InputError, RunError, MemoryError, torch.OutOfMemoryError):
        raise
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise RunError(
            f"the model failed on {first_failure(model, x, ids)}: {reason}; rows written before are kept"
        ) from error


def first_failure(model: Model, x: Tensor, ids: Tensor) -> str:
    """The first image that ``model`` fails on alone, or all of them where it fails on none."""
    for image, id_ in zip(torch.split(x, 1), ids.tolist(), strict=True):
        try:
            with torch.no_grad():
                model(image)
        except (Exception, SystemExit):
            return f"image {id_}"
    return f"a batch of images {', '.join(map(str, ids.tolist()[:8]))}{', ...' * (len(ids) > 8)}"

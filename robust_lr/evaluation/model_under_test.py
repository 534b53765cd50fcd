"""The model under test: the model that judges, the model that gradients are taken through, and the size of passes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from math import ceil, isnan
from typing import Any

import torch
from torch import Tensor, nn

from ..attacks.arguments import compare_with_ball
from ..attacks.losses import cross_entropy
from ..attacks.stepwise import evaluate_objective
from ..models.outputs import LogitsOf, logits_of
from ..protocols.base import StepwiseProtocol
from ..utils.contexts import Model
from ..utils.errors import InputError, RunError


@dataclass(frozen=True)
class Bench:
    """One model under evaluation.

    Args:
        model: pixels [N, C, H, W] in [0, 1] -> logits [N, num_classes]; gives the verdicts.
        attacked: computes the same function; gives the gradients.
        rows: maximum number of rows in a pass.
        fixed: every pass has exactly ``rows`` rows, padded if necessary. Libraries may round differently for another
            batch shape, so this makes an image's arithmetic independent of the images beside it.
        patience: steps between checks of which images are decided; on a GPU each check makes the host wait.
        precision: context manager for the passes of ``attacked``.
        keep_images: keep the images that verdicts rest on, as the column "finished".
        sizes: numbers of rows, increasing, with which ``attacked`` gives the same bits as with ``rows``.
        places: whether ``model`` gave an image the same bits in every place of a pass when this was tested.
        surrogate: name and hash of the network that ``attacked`` is, if it is another one than ``model``; its
            predictions during the attack are then ignored.
        passes_per_step: most passes that one step of an attack takes: images in flight fill so many.
        waiting: number of images that wait for a place in these passes, so that the last ones are full as well.
        graphs: the steps of an attack are replayed as CUDA graphs, see ``step_graph``.
        cycles: ``cycle_end.ON`` if attacks end early once iterates repeat, else the reason why not.
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
    passes_per_step: int = 1
    waiting: int = 0
    graphs: bool = False

    @property
    def is_keyed(self) -> bool:
        """True if logits depend on nothing but the image and, for a random model, seed and id."""
        return True

    @property
    def randomness(self) -> dict[str, Any] | None:
        """Description of how a random model draws and is judged, for the result; None for a deterministic model."""
        return None

    def passes_per_query(self, part: StepwiseProtocol) -> tuple[int, int]:
        """Return the numbers of forward and backward passes that one query of ``part`` takes."""
        return part.passes_per_query(self.num_classes)

    def padded_size(self, n: int) -> int:
        """Return the number of rows that a pass over ``n`` images is padded to."""
        return next((size for size in self.sizes if size >= n), self.rows)

    def split_into_passes(self, n: int) -> Iterator[slice]:
        """Yield the rows of each pass over ``n`` images; passes are of about the same size, as tiny ones cost more."""
        each = ceil(n / ceil(n / self.rows))
        for first in range(0, n, each):
            yield slice(first, min(first + each, n))

    def verdict_logits(self, x: Tensor, ids: Tensor, moments: Tensor) -> Tensor:
        """Return the logits that a verdict on ``x`` rests on, [passes, N, num_classes]; errors as ``logits``.

        ``moments`` [N] differ between queries of the same image and key the draws of a random model.
        """
        return self.logits(x, ids)[None]

    def evaluate_query(
        self, part: StepwiseProtocol, query: Tensor, rows: Mapping[str, Tensor], targets: Tensor | None, gradient: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits, objective and its gradient at ``query``, computed through the attacked model."""
        answers = []
        for here in self.split_into_passes(len(query)):
            size = self.padded_size(here.stop - here.start)
            columns = {name: self.pad(rows[name][here], size) for name in ("id", "draw", "step", "away")}
            toward = None if targets is None else self.pad(targets[here], size)
            answer = part.evaluate_query(
                self.attacked, self.pad(query[here], size), columns, toward, gradient, seed=self.seed
            )
            answers.append([column[: here.stop - here.start] for column in answer])
        logits, loss, slopes = (torch.cat(each) for each in zip(*answers, strict=True))
        return logits, loss, slopes

    def query(self, query: Tensor) -> Tensor:
        """Return logits of the attacked model without gradients."""
        answers = []
        with torch.no_grad():
            for here in self.split_into_passes(len(query)):
                size = here.stop - here.start
                answers.append(self.attacked(self.pad(query[here], self.padded_size(size)))[:size])
        return torch.cat(answers)

    def logits(self, x: Tensor, ids: Tensor) -> Tensor:
        """Return the logits of the judging model, [N, num_classes], for at most ``rows`` images, after checking them.

        Raises:
            InputError: logits of the wrong shape.
            RunError: logits that are not finite; names the image.
        """
        with torch.no_grad(), self.name_failing_image(x, ids):
            logits = self.model(self.pad(x))[: len(x)]
        check_logits(logits, len(x), self.num_classes)
        check_finite(logits, ids)
        return logits

    def name_failing_image(self, x: Tensor, ids: Tensor) -> AbstractContextManager[None]:
        """See the function of the same name; each image is tried in a pass of the usual number of rows."""
        return name_failing_image(lambda image: self.model(self.pad(image)), x, ids)

    def pad(self, column: Tensor, rows: int | None = None) -> Tensor:
        """Pad ``column`` with copies of its first row to ``rows`` (default ``self.rows``) if their size is fixed."""
        missing = (self.rows if rows is None else rows) - len(column) if self.fixed else 0
        return torch.cat([column, column[:1].expand(missing, *column.shape[1:])]) if missing > 0 else column


#: numbers of rows that a pass may be padded to instead of all of them
SIZES = tuple(range(4, 64, 4))


def equal_sizes(model: Model, x: Tensor, labels: Tensor) -> tuple[int, ...]:
    """Return the numbers of rows in ``SIZES`` with which a pass gives the same bits as a pass over all of ``x``.

    Logits with and without gradients, and the gradients, are compared in other places of the batch. Libraries choose
    the order of their sums by the shape alone, so what holds for these images holds for others.
    """
    with torch.no_grad():
        plain = model(x)
    logits, _, gradient = evaluate_objective(model, x, labels, None, cross_entropy)
    found = []
    for n in SIZES:
        if n >= len(x):
            break
        few, its_labels = x[:n].flip(0), labels[:n].flip(0)
        with torch.no_grad():
            same = torch.equal(model(few).flip(0), plain[:n])
        some_logits, _, slopes = evaluate_objective(model, few, its_labels, None, cross_entropy)
        if same and torch.equal(some_logits.flip(0), logits[:n]) and torch.equal(slopes.flip(0), gradient[:n]):
            found.append(n)
    return tuple(found)


def gives_places_equal_bits(model: Model, x: Tensor) -> bool:
    """Return True if the logits of ``x`` are the same to the bit one place on in the batch.

    Matrix products of few rows may process them in blocks, and the last block may sum in another order.
    """
    with torch.no_grad():
        return torch.equal(model(x.roll(1, 0)), model(x).roll(1, 0))


class InFloat32(nn.Module):
    """Wrap a model of another floating dtype: convert images to the dtype that it takes, and its logits to float32.

    Args:
        model: pixels -> logits.
        takes: dtype of the images that the model takes.
    """

    def __init__(self, model: nn.Module, takes: torch.dtype):
        super().__init__()
        self.model, self.takes = model, takes

    def forward(self, x: Tensor) -> Tensor:
        logits = self.model(x.to(self.takes))
        return logits.float() if isinstance(logits, Tensor) and logits.is_floating_point() else logits


def copy_if_possible(model: nn.Module) -> nn.Module | None:
    """Copy the model with its present state; None if it cannot be copied."""
    try:
        return copy.deepcopy(model)
    except Exception:  # users' models may hold generators, locks or C extensions
        return None


def unwrap_logits(model: nn.Module, x: Tensor) -> tuple[nn.Module, str]:
    """Wrap ``model`` if it returns its logits inside another object; also return where they are in it.

    Raises:
        InputError: an object whose logits are not a tensor.
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
    """Wrap ``model`` if it takes images or returns logits of another floating dtype; also return the logits' dtype.

    A model that fails, or returns something else, is returned as it is; the guards report it.
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


def verify_bounds(x: Tensor, x_adv: Tensor, ids: Tensor, eps: float, norm: str) -> Tensor:
    """Verify that no image is farther than eps from its original and every pixel is in [0, 1]; return distances, [N].

    Raises:
        RunError: an image is out of bounds; names it.
    """
    distance, near = compare_with_ball(x, x_adv, eps, norm)
    low, high = x_adv.flatten(1).aminmax(dim=1)
    wrong = ~((low >= 0) & (high <= 1) & near)  # negated, so that NaN is wrong as well
    if wrong.any():
        apart, least, most = (float(values[wrong][0]) for values in (distance, low, high))
        reason = f"distance {apart:.6g}, eps {eps:.6g}"
        if isnan(apart):
            reason = "pixels that are not finite; are the model's gradients finite?"
        elif not 0 <= least <= most <= 1:
            reason = f"pixels span [{least:.6g}, {most:.6g}] and must be in [0, 1]"
        raise RunError(f"the attack left its bounds on image {int(ids[wrong][0])}: {reason}")
    return distance


def check_finite(logits: Tensor, ids: Tensor) -> None:
    """Raise RunError, naming the image, unless every logit [N, classes] is finite."""
    broken = ~logits.isfinite().all(dim=1)
    if broken.any():
        raise RunError(f"the model's logits for image {int(ids[broken][0])} are not finite")


@contextmanager
def name_failing_image(model: Model, x: Tensor, ids: Tensor) -> Iterator[None]:
    """Turn whatever a model raises, SystemExit included, into a RunError that names the image.

    Args:
        model: once it has failed, it is run on each image alone.
        x, ids: the images [n, C, H, W] of the failed pass, and their ids [n].
    """
    try:
        yield
    except (InputError, RunError, MemoryError, torch.OutOfMemoryError):
        raise
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise RunError(
            f"the model failed on {find_failing_image(model, x, ids)}: {reason}; rows written before are kept"
        ) from error


def find_failing_image(model: Model, x: Tensor, ids: Tensor) -> str:
    """Name the first image that ``model`` fails on alone, or the whole batch if it fails on none alone."""
    for image, id_ in zip(torch.split(x, 1), ids.tolist(), strict=True):
        try:
            with torch.no_grad():
                model(image)
        except (Exception, SystemExit):
            return f"image {id_}"
    return f"a batch of images {', '.join(map(str, ids.tolist()[:8]))}{', ...' * (len(ids) > 8)}"

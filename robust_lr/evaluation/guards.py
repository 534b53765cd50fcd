"""Guards look for mistakes that make a robustness number wrong, on a few images, before an evaluation begins.

Each guard is one function to a complaint or None, and one line in ``GUARDS_OF_LOGITS`` or ``GUARDS_OF_GRADIENTS``. The
guards share their passes, because in a short evaluation they are what takes time. Two mistakes are always errors and
need no guard: pixels outside [0, 1], and an eps above 1 in L-infinity, where 1 already allows any image.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from math import isnan
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..attacks.losses import cross_entropy, margin
from ..attacks.stepwise import evaluate_objective
from ..models.layers.basic import PRESETS
from ..utils.checks import check_name
from ..utils.errors import InputError, RunError
from ..utils.statistics import mcnemar
from .model_under_test import check_finite

#: number of images that guards look at, and number for guards that need further passes
SAMPLE, FEW = 64, 16
#: significance level at which another form of the images counts as better than the given one
SIGNIFICANT = 1e-3
#: largest difference between logits that count as the same, as a share of the largest logit
SAME = 1e-5


class Answers(NamedTuple):
    """What a pass over clean and perturbed images showed.

    Attributes:
        clean, perturbed: logits, [n, classes].
        received: what the first layer received for the clean images; None if it is not a layer that guards know.
    """

    clean: Tensor
    perturbed: Tensor
    received: Tensor | None


@dataclass(frozen=True, eq=False, kw_only=True)
class Sample:
    """Inputs of the guards of logits, and the passes that they share.

    Attributes:
        model: in eval mode, with parameters that require no gradients.
        x, labels, ids: images [n, C, H, W] in [0, 1], classes and ids [n].
        num_classes: number of classes of the data set.
        logits: logits for ``x``, [n, classes], finite.
        resolution: relative rounding error of the dtype that the model computes its logits in.
        away: random images in a ball around ``x``, where an attack may start.
        averaged: whether the attack averages gradients over the randomness of the model.
    """

    model: nn.Module
    x: Tensor
    labels: Tensor
    ids: Tensor
    num_classes: int
    logits: Tensor
    resolution: float
    away: Tensor
    averaged: bool = False

    def ask(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = self.model(x)
        return logits

    @cached_property
    def scale(self) -> float:
        """The largest absolute logit; differences are judged relative to it."""
        return float(self.logits.abs().max())

    def ask_both(self) -> Answers:
        """Ask for a few images and perturbed ones in one pass, because small passes are inefficient."""
        few = self.x[:FEW]
        with captured_input(self.model) as received:
            logits = self.ask(torch.cat([few, self.away]))
        return Answers(logits[: len(few)], logits[len(few) :], received[0][: len(few)] if received else None)

    @cached_property
    def answers(self) -> Answers:
        """The answers of the first pass over clean and perturbed images."""
        return self.ask_both()

    @cached_property
    def is_steady(self) -> bool:
        """True if clean and perturbed images get the same logits in a second pass, beside other images.

        Such a model is neither random nor dependent on the batch, so the guards of both need no passes of their own.
        """
        clean, perturbed, _ = self.answers
        others = self.x[FEW : FEW + len(clean)]
        again = self.ask(torch.cat([self.away, others]))[: len(perturbed)]
        return self.are_same(self.logits[: len(clean)], clean) and self.are_same(again, perturbed)

    def are_same(self, one: Tensor, other: Tensor) -> bool:
        """Return True if logits differ by no more than rounding; NaN differs from everything."""
        return bool((other - one).abs().max() <= SAME * self.scale)

    @cached_property
    def noise(self) -> tuple[float, str]:
        """Largest difference between the logits of two passes over the same images, and which images these were."""
        names = "the same images", "the same perturbed images"
        if self.is_steady:
            return 0.0, ""
        for one, other, words in zip(self.answers[:2], self.ask_both()[:2], names, strict=True):
            if not self.are_same(one, other):
                return float((other - one).abs().max()), words
        return 0.0, ""

    @property
    def is_random(self) -> bool:
        return self.noise[0] != 0


def run_guards(
    model: nn.Module,
    x: Tensor,
    labels: Tensor,
    ids: Tensor,
    *,
    num_classes: int,
    max_label: int,
    away: Tensor,
    resolution: float = 2**-23,
    allow: Collection[str] = (),
    averaged: bool = False,
) -> int:
    """Run every guard of logits except those in ``allow``; return the model's number of classes.

    Args:
        model: in eval mode and frozen.
        x, labels, ids: a sample of the images.
        num_classes, max_label: number of classes of the data set, and its largest label.
        away: perturbed images that some guards look at as well.
        resolution: relative rounding error of the dtype that the model computes its logits in.
        allow: names of ``GUARDS`` that are skipped.
        averaged: whether the attack averages gradients over the randomness of the model.

    Raises:
        InputError: the first complaint, an output that is not a batch of logits, or a model that fails.
        RunError: logits that are not finite.
    """
    for name in allow:
        check_name("guard", name, GUARDS)
    logits = query_model(model, x)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(x) or not logits.is_floating_point():
        what = f"{tuple(logits.shape)} {logits.dtype}" if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(f"the model returns {what} for {len(x)} images: logits [{len(x)}, classes] are needed")
    if logits.shape[1] <= max_label:
        words = f"the model has {logits.shape[1]} classes, but the data set has labels up to {max_label}"
        raise InputError(f"{words}: give images of its classes")
    check_finite(logits, ids)
    sample = Sample(
        model=model,
        x=x,
        labels=labels,
        ids=ids,
        num_classes=num_classes,
        logits=logits,
        resolution=resolution,
        away=away,
        averaged=averaged,
    )
    for name, complain in GUARDS_OF_LOGITS.items():
        if name not in allow:
            refuse_if(complain(sample), name)
    return logits.shape[1]


def run_guards_of_gradients(
    attacked: nn.Module, x: Tensor, labels: Tensor, ids: Tensor, *, allow: Collection[str] = ()
) -> None:
    """Run every guard of gradients except those in ``allow``.

    Args:
        attacked: the network that gradients are taken through, in eval mode and frozen.
        x, labels, ids: a sample of the images.
        allow: names of ``GUARDS`` that are skipped.

    Raises:
        InputError: the first complaint, or logits that carry no gradient.
    """
    for name, complain in GUARDS_OF_GRADIENTS.items():
        if name not in allow:
            refuse_if(complain(attacked, x, labels, ids), name)


def refuse_if(complaint: str | None, name: str) -> None:
    """Raise an InputError with the guard's complaint, if it has one."""
    if complaint is not None:
        raise InputError(f"{complaint} (to go on all the same, `allow` {name!r})")


def query_model(model: nn.Module, x: Tensor) -> object:
    """Return what the model returns for ``x``; if it fails, e.g. on images of this shape, raise a short InputError."""
    try:
        with torch.no_grad():
            return model(x)
    except (InputError, RunError):
        raise
    except Exception as error:  # users' code may raise anything
        reason = str(error).partition("\n")[0]
        raise InputError(f"the model fails on images {tuple(x.shape)}: {type(error).__name__}: {reason}") from error


# The guards


def complain_about_classes(s: Sample) -> str | None:
    """Complain unless the model has as many classes as the data set."""
    found = s.logits.shape[1]
    if found == s.num_classes:
        return None
    return f"the model has {found} classes, the data set {s.num_classes}: are the labels those that it was trained on?"


def complain_about_training_mode(s: Sample) -> str | None:
    """Complain if a module is in training mode even though ``eval()`` was called on the model."""
    still = [name or type(module).__name__ for name, module in s.model.named_modules() if module.training]
    return f"{still[0]} is still in training mode after model.eval()" if still else None


def complain_about_probabilities(s: Sample) -> str | None:
    """Complain if the model ends in a softmax or a sigmoid, which makes the gradient of the loss vanish.

    Values in [0, 1] alone prove nothing: cosines and ReLU features can lie there as well. Probabilities add up to 1,
    and the values of a sigmoid gather at both ends.
    """
    if s.logits.min() < -1e-6 or s.logits.max() > 1 + 1e-6 or s.logits.amax(0).equal(s.logits.amin(0)):
        return None
    if (s.logits.sum(1) - 1).abs().max() < max(1e-3, 4 * s.resolution):
        return "the model returns probabilities: return the logits before the softmax"
    ends = (s.logits < 0.02) | (s.logits > 0.98)
    saturated = float(ends.float().mean()) > 0.5 and float(s.logits.max()) > 0.9
    return "the model returns values of a sigmoid: return the logits before it" if saturated else None


def complain_about_randomness(s: Sample) -> str | None:
    """Complain if the same images, clean or perturbed, give different logits twice and the attack does not average."""
    if not s.is_random:
        return None
    apart, words = s.noise
    if isnan(apart):
        return f"logits of {words} are not finite: count refused images as errors, and attack the network inside"
    if s.averaged:
        return None
    return (
        f"the model is random or keeps state: logits of {words} differ by {apart:.3g} from one pass to the next; "
        "attack it on the average of its draws, with `protocol` autoattack-rand or PGD and APGD with eot = 20, or fix "
        "its randomness in eval mode"
    )


def complain_about_batch_dependence(s: Sample) -> str | None:
    """Complain if an image's logits depend on the images beside it, as they do with batch statistics."""
    few = min(FEW, len(s.x) // 2)
    if few == 0 or s.is_steady or s.is_random:
        return None
    tolerance = max(1e-3, 4 * s.resolution) * s.scale
    half = (len(s.away) + 1) // 2
    moved = s.ask(torch.cat([s.x[:few], s.away[:half]]).flip(0)).flip(0)
    for logits, others, words in (
        (s.logits[:few], moved[:few], "an image"),
        (s.answers.perturbed[:half], moved[few:], "a perturbed image"),
    ):
        apart = float((others - logits).abs().max())
        if apart > tolerance:
            untracked = any(
                isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None
                for module in s.model.modules()
            )
            hint = ": batch norm lacks running statistics" if untracked else ""
            return f"the logits of {words} depend on the other images in its batch, by {apart:.3g}{hint}"
    return None


def complain_about_gradients(attacked: nn.Module, x: Tensor, labels: Tensor, ids: Tensor) -> str | None:
    """Complain about gradients that are not finite, or that vanish for half of the images or more.

    A gradient vanishes if those of the loss and of the margin are both zero. If only the gradient of the loss is zero,
    its softmax is saturated, and the verdict shows how much that matters.
    """
    x, labels, ids = x[:FEW], labels[:FEW], ids[:FEW]
    _, _, gradient = evaluate_objective(attacked, x, labels, None, cross_entropy)
    broken = ~gradient.isfinite().flatten(1).all(1)
    if broken.any():
        return f"the gradient for image {int(ids[broken][0])} is not finite"
    zero = (gradient == 0).flatten(1).all(1)
    if 2 * int(zero.sum()) >= len(x):
        zero &= (evaluate_objective(attacked, x, labels, None, margin)[2] == 0).flatten(1).all(1)
    if 2 * int(zero.sum()) < len(x):
        return None
    return (
        f"the gradient is zero everywhere for {int(zero.sum())} of {len(x)} images: an attack by gradients cannot move"
    )


def complain_about_normalization(s: Sample) -> str | None:
    """Complain if images are normalized twice, or if another form of the images is classified significantly better.

    Other forms are tried if the input of the first layer is not centered and scaled, or accuracy is at chance.
    """
    received = s.answers.received
    for words, mean, std in known_statistics(s.x[:FEW]):
        twice = ((s.x[:FEW] - mean) / std - mean) / std
        if received is not None and received.shape == twice.shape and torch.allclose(received, twice, atol=1e-3):
            return f"the first layer receives images normalized twice ({words})"
    centered = received is not None and abs(float(received.mean())) < 1 and 0.4 < float(received.std()) < 2.5
    right = s.logits.argmax(1) == s.labels
    if centered and int(right.sum()) * s.num_classes > 2 * len(right):
        return None
    best: tuple[int, str] | None = None
    forms = alternative_forms(s.x)
    if mcnemar(int((~right).sum()), 0) >= SIGNIFICANT / len(forms):
        return None  # too few images are wrong for any form to be significantly better
    for words, x in forms:
        better = s.ask(x).argmax(1) == s.labels
        gained, lost = int((better & ~right).sum()), int((right & ~better).sum())
        # an untrained model is right by chance, now for this form and now for that one
        is_above_chance = int(better.sum()) * s.num_classes > 2 * len(right)
        is_better = gained > lost and mcnemar(gained, lost) < SIGNIFICANT / len(forms) and is_above_chance
        if is_better and (best is None or int(better.sum()) > best[0]):
            best = int(better.sum()), words
    if best is None:
        return None
    return f"of {len(right)} clean images {int(right.sum())} are classified correctly, but {best[0]} {best[1]}"


GUARDS_OF_LOGITS: dict[str, Callable[[Sample], str | None]] = {
    "classes": complain_about_classes,
    "training": complain_about_training_mode,
    "probabilities": complain_about_probabilities,
    "deterministic": complain_about_randomness,
    "batch": complain_about_batch_dependence,
    "normalization": complain_about_normalization,
}
#: guards that look at the network that gradients are taken through, once the others found nothing wrong
GUARDS_OF_GRADIENTS: dict[str, Callable[[nn.Module, Tensor, Tensor, Tensor], str | None]] = {
    "gradients": complain_about_gradients,
}
GUARDS: dict[str, Callable[..., str | None]] = {**GUARDS_OF_LOGITS, **GUARDS_OF_GRADIENTS}


@contextmanager
def captured_input(model: nn.Module) -> Iterator[list[Tensor]]:
    """Yield a list that a pass fills with the input of the first convolution or linear layer that it calls."""
    seen: list[Tensor] = []

    def receive(module: nn.Module, arguments: tuple[object, ...]) -> None:
        if not seen and arguments and isinstance(arguments[0], Tensor):
            seen.append(arguments[0].detach().float())

    layers = [m for m in model.modules() if isinstance(m, nn.modules.conv._ConvNd | nn.Linear)]
    handles = [layer.register_forward_pre_hook(receive) for layer in layers]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def known_statistics(x: Tensor) -> list[tuple[str, Tensor, Tensor]]:
    """Return common means and standard deviations for such images, each with the options that set them."""
    out = []
    for name, values in {**PRESETS, "0.5": ((0.5,), (0.5,))}.items():
        if values is not None and len(values[0]) in (1, x.shape[1]):
            mean, std = (x.new_tensor(value).view(-1, 1, 1) for value in values)
            out.append((f"`preset` {name}" if name in PRESETS else f"`mean` {name} `std` {name}", mean, std))
    return out


def alternative_forms(x: Tensor) -> list[tuple[str, Tensor]]:
    """Return other forms of the images that a network may expect: normalized, denormalized, or in 0..255.

    The sample's own statistics come last: they reveal missing normalization when no common statistics are right.
    """
    out = [("with pixels in 0..255: divide by 255 what it takes", 255 * x)]
    for words, mean, std in known_statistics(x):
        out.append(
            (f"if normalized first, e.g. by {words}: is the normalization of its training missing?", (x - mean) / std)
        )
        out.append((f"if {words} is undone: are they normalized twice?", x * std + mean))
    mean, std = (f(x.transpose(0, 1).flatten(1), 1).view(-1, 1, 1) for f in (torch.mean, torch.std))
    words = f"their own `mean` {format_values(mean)} `std` {format_values(std)}"
    out.append(
        (f"if normalized first, e.g. by {words}: is the normalization of its training missing?", (x - mean) / std)
    )
    return out


def format_values(values: Tensor) -> str:
    return ",".join(f"{value:.2g}" for value in values.flatten().tolist())

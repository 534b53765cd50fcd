"""Users' own attacks as protocols."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from ..attacks import targets
from ..attacks.arguments import check_attack
from ..utils.checks import check_name
from ..utils.contexts import Model
from ..utils.errors import InputError
from .base import NORMS, Protocol, convert_fractions, format_distance

TARGETS = ("uniform", "given")

Attack = Callable[[Any, Tensor, Tensor, Tensor | None], Tensor]


@dataclass(frozen=True, kw_only=True)
class Custom(Protocol):
    """A user's own attack: ``function(model, x, labels, targets) -> x_adv``.

    Its results must lie in the ball and in [0, 1], and are judged by a pass of the model itself. ``targets`` is None
    unless the attack is targeted.

    Args:
        function: called with images [n, C, H, W], labels and targets [n]; None if the protocol comes from a record.
        eps, norm: the ball that the attack must stay in.
        targeted, target: whether it aims at target classes, and which: "uniform" over the wrong classes, or "given".
        together: attack the images of a batch together. By default each image is attacked separately, with PyTorch's
            generator seeded by (seed, image id), so that nothing depends on other images.
        entry, code_sha256: name of the function, and hash of its code; filled in from the function.
        name, source: name in reports, and origin of the values.

    Raises:
        InputError: a value out of range, or something that cannot be called.
    """

    steps: ClassVar[int] = 1  # at least

    function: Attack | None = field(default=None, repr=False, compare=False)
    eps: float
    norm: str = "linf"
    targeted: bool = False
    target: str = "uniform"
    together: bool = False
    entry: str = ""
    code_sha256: str = ""
    name: str = "custom"
    source: str = "user"

    def __post_init__(self) -> None:
        convert_fractions(self)
        check_name("norm", self.norm, NORMS)
        check_name("target", self.target, TARGETS)
        check_attack(eps=self.eps, step_size=self.eps, steps=1, norm=self.norm)
        if self.target != "uniform" and not self.targeted:
            raise InputError(f"target = {self.target!r} is for targeted attacks: set targeted = true as well")
        if self.function is None:
            return
        if not callable(self.function):
            raise InputError(f"attack {self.function!r}: a callable (model, x, labels, targets) -> x_adv is needed")
        if not self.entry:
            object.__setattr__(self, "entry", getattr(self.function, "__qualname__", type(self.function).__name__))
        if not self.code_sha256:
            object.__setattr__(self, "code_sha256", code_hash(self.function))

    @property
    def is_keyed_by_image(self) -> bool:
        """True if the attack on an image does not depend on other images."""
        return not self.together

    @property
    def needs_targets(self) -> bool:
        """True if the targets must be passed to ``evaluate``."""
        return self.target == "given"

    def with_given_targets(self) -> Custom:
        """Return the same attack with targets that are passed to ``evaluate``; InputError for an untargeted one."""
        return replace(self, target="given") if self.targeted else super().with_given_targets()

    def goals(
        self, model: Model, x: Tensor, labels: Tensor, ids: Tensor, num_classes: int, *, seed: int, draw: int = 0
    ) -> Tensor:
        """Targets if ``targeted``, otherwise labels, [N] int64."""
        return targets.uniform(labels, ids, num_classes, seed=seed, draw=draw) if self.targeted else labels

    def values(self) -> dict[str, Any]:
        """Return every value that changes a number, and its source."""
        values = asdict(replace(self, function=None, entry=self.entry, code_sha256=self.code_sha256))
        del values["function"]
        return {"attack": "custom", "criterion": self.criterion, **values}

    def __str__(self) -> str:
        return f"{'targeted ' * self.targeted}{self.entry}, eps {format_distance(self.eps, self.norm)}"


def code_hash(function: Attack) -> str:
    """Return the SHA-256 of the file that defines a function, else of its type: changed code is another evaluation."""
    try:
        file = inspect.getsourcefile(inspect.unwrap(function)) or inspect.getsourcefile(type(function))
    except TypeError:
        file = None
    content = Path(file).read_bytes() if file and Path(file).is_file() else repr(type(function)).encode()
    return hashlib.sha256(content).hexdigest()

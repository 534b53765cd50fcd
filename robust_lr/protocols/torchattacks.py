"""Attacks of torchattacks as protocols."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from ..attacks.arguments import check_attack
from ..attacks.torchattacks_adapter import NORMS as NAMES
from ..attacks.torchattacks_adapter import RADII, ball_options, check_options
from ..utils.checks import check_name
from ..utils.errors import InputError
from .base import Protocol, convert_fractions, format_distance


@dataclass(frozen=True, kw_only=True)
class Library(Protocol):
    """An attack of torchattacks; see ``attacks.torchattack``. What it returns is judged, within eps.

    Args:
        attack: name of its class.
        options: values of the class, under its own names. Its eps and norm are those of the protocol, and its seed is
            a function of (seed, image id).
        eps, norm: of the ball in which a success counts.
        together: whether the images of a batch may be attacked together. By default each is attacked by itself, with a
            generator seeded by (seed, image id), so that nothing depends on the images beside it: most of these
            attacks draw random numbers for a whole batch, or stop by the loss of a whole batch.
        name, source: name in reports, and origin of the values.

    Raises:
        InputError: a value out of range, or an option that contradicts the protocol's eps or norm.
    """

    steps: ClassVar[int] = 1  # at least

    attack: str
    eps: float
    norm: str = "linf"
    options: Mapping[str, Any] = field(default_factory=dict)
    together: bool = False
    name: str = "torchattacks"
    source: str = "user"

    def __post_init__(self) -> None:
        convert_fractions(self)
        check_name("norm", self.norm, NAMES)
        check_attack(eps=self.eps, step_size=self.eps, steps=1, norm=self.norm)
        own: dict[str, Any] = {**dict.fromkeys(RADII, self.eps), "norm": NAMES.get(self.norm)}
        for key, value in self.options.items():
            if key == "seed":
                raise InputError("options.seed: the seed is a function of `seed` and the image's id, leave it out")
            if key in own and value != own[key]:
                raise InputError(f"options.{key} = {value!r} contradicts the protocol's {own[key]!r}: leave it out")
        object.__setattr__(self, "options", {key: v for key, v in self.options.items() if key not in own})

    def check(self) -> None:
        """Check the options against the library's class, and the norm.

        Raises:
            InputError: no such class, an option that it does not have, or a norm that it does not know.
        """
        ball_options(self.attack, self.eps, self.norm)
        check_options(self.attack, self.options)

    @property
    def follows_gradients(self) -> bool:
        """True if the attack uses gradients of the model."""
        return self.attack not in BLACK_BOX

    @property
    def is_keyed_by_image(self) -> bool:
        """True if the attack on an image does not depend on other images."""
        return not self.together

    def values(self) -> dict[str, Any]:
        """Return every value that changes a number, and its source."""
        values = {key: value for key, value in asdict(self).items() if key not in ("attack", "options")}
        return {
            "attack": f"torchattacks {self.attack}",
            "criterion": self.criterion,
            "options": dict(self.options),
            **values,
        }

    def __str__(self) -> str:
        options = "".join(f", {key} {value}" for key, value in self.options.items())
        return f"torchattacks' {self.attack}, eps {format_distance(self.eps, self.norm)}{options}"


#: classes of torchattacks that ask the model for nothing but its logits, if for anything
BLACK_BOX = ("GN", "OnePixel", "Pixle", "SPSA", "Square", "VANILA")

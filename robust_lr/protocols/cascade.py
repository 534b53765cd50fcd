"""Attacks one after the other, as a protocol."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ..utils.checks import check_whole
from ..utils.errors import InputError
from .base import Protocol, format_distance


@dataclass(frozen=True, kw_only=True)
class Cascade(Protocol):
    """Attacks one after the other, each on the images that withstood those before.

    Args:
        parts: untargeted attacks in one ball.
        first: number of images, those with the smallest ids; 0 for all.
        balanced: number of images, drawn by the seed with equal numbers from all classes; 0 for all.
        name, source: name in reports, and origin of the values.

    Raises:
        InputError: no parts, one that does not end at its first success, parts of different balls or of one name.
    """

    parts: tuple[Protocol, ...]
    first: int = 0
    balanced: int = 0
    name: str = "cascade"
    source: str = "user"

    def __post_init__(self) -> None:
        check_whole(0, first=self.first, balanced=self.balanced)
        if self.first and self.balanced:
            raise InputError(f"first = {self.first} and balanced = {self.balanced}: give one of them")
        names = [part.name for part in self.parts]
        if not self.parts or len(set(names)) < len(names):
            raise InputError(f"parts = {names}: a cascade needs at least one part, each with a name of its own")
        for part in self.parts:
            if part.criterion != "worst" or part.targeted:
                raise InputError(f"part {part.name!r}: a cascade takes untargeted attacks with criterion = 'worst'")
            if (part.eps, part.norm) != (self.eps, self.norm):
                raise InputError(f"part {part.name!r}: eps and norm must be those of the first part")

    @property
    def eps(self) -> float:
        return self.parts[0].eps

    @property
    def norm(self) -> str:
        return self.parts[0].norm

    @property
    def steps(self) -> int:
        return sum(part.steps for part in self.parts)

    @property
    def follows_gradients(self) -> bool:
        """True if any of the attacks uses gradients of the model."""
        return any(part.follows_gradients for part in self.parts)

    @property
    def is_keyed_by_image(self) -> bool:
        """True if the attack on an image does not depend on other images."""
        return all(part.is_keyed_by_image for part in self.parts)

    def check(self) -> None:
        """Check the values that only a library can check; InputError for a value that it refuses."""
        for part in self.parts:
            part.check()

    def attacks(self) -> tuple[Protocol, ...]:
        """Return the attacks that run one after the other."""
        return self.parts

    def at(self, eps: float) -> Cascade:
        """Return the same attacks in another ball."""
        return replace(self, parts=tuple(part.at(eps) for part in self.parts))

    def values(self) -> dict[str, Any]:
        """Return every value that changes a number, and its source."""
        return {
            "attack": "cascade",
            "eps": self.eps,
            "norm": self.norm,
            "criterion": self.criterion,
            "parts": [part.values() for part in self.parts],
            "first": self.first,
            "balanced": self.balanced,
            "name": self.name,
            "source": self.source,
        }

    def __str__(self) -> str:
        first = f"; the first {self.first} ids" if self.first else ""
        first += f"; {self.balanced} images, balanced over classes" if self.balanced else ""
        return f"{', then '.join(part.name for part in self.parts)}; eps {format_distance(self.eps, self.norm)}{first}"

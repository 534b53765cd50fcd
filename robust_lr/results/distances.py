"""Robust accuracy at every radius, from the smallest perturbation found for each image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import median

from ..protocols.base import Protocol
from ..utils.statistics import Proportion
from .curve import Curve
from .ledger import Row

#: radii of a curve in L-infinity, in levels of 255, and in other norms in units of the protocol's eps
LEVELS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 255)
MULTIPLES = (0.0, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


def smallest_perturbation(row: Row) -> float | None:
    """Return the distance of the nearest misclassified image found, 0 if the clean image is, None if none was found."""
    if row.clean != row.label:
        return 0.0
    return row.distance if row.adversarial != row.label else None


def robust_at(rows: Sequence[Row], eps: float) -> Proportion:
    """Return the share of the images with no misclassified image found within ``eps``."""
    found = [smallest_perturbation(row) for row in rows]
    return Proportion(sum(distance is None or distance > eps for distance in found), len(rows))


def distance_points(rows: Sequence[Row], protocol: Protocol) -> list[tuple[float, dict[str, Proportion]]]:
    """Return the points of a curve over eps, as ``Curve`` has them; mistakes on clean images count at every radius."""
    radii = [level / 255 for level in LEVELS] if protocol.norm == "linf" else [m * protocol.eps for m in MULTIPLES]
    radii = sorted({*radii, protocol.eps})
    clean = [row for row in rows if row.clean == row.label]
    points = []
    for eps in radii:
        robust = robust_at(rows, eps)
        broken = len(clean) - robust.count
        shares = {"robust_accuracy_worst_seen": robust, "attack_success": Proportion(broken, len(clean))}
        points.append((eps, shares))
    return points


def with_distances(curve: Curve, rows: Sequence[Row], protocol: Protocol) -> Curve:
    """Return the curve of an evaluation with its points over eps."""
    return replace(curve, axis="eps", points=distance_points(rows, protocol))


def median_distance(rows: Sequence[Row]) -> float | None:
    """Return the median of the smallest perturbations, infinite where none was found; None if that is the median."""
    found = [smallest_perturbation(row) for row in rows]
    middle = median(float("inf") if distance is None else distance for distance in found)
    return middle if middle < float("inf") else None

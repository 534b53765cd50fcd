"""Robust accuracy at any radius, from the smallest perturbation found for each image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import median

from ..protocols.base import Protocol
from ..utils.statistics import Proportion
from .curve import Curve
from .ledger import Row

#: radii of a curve: in L-infinity in units of 1/255, in other norms as multiples of the protocol's eps
LEVELS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 255)
MULTIPLES = (0.0, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


def smallest_perturbation(row: Row) -> float | None:
    """Return the distance of the nearest misclassified image: 0 if the clean image is one, None if none was found."""
    if row.clean != row.label:
        return 0.0
    return row.distance if row.adversarial != row.label else None


def robust_at(rows: Sequence[Row], eps: float) -> Proportion:
    """Return the proportion of images for which no misclassified image was found within ``eps``."""
    found = [smallest_perturbation(row) for row in rows]
    return Proportion(sum(distance is None or distance > eps for distance in found), len(rows))


def distance_points(rows: Sequence[Row], protocol: Protocol) -> list[tuple[float, dict[str, Proportion]]]:
    """Return the points of a ``Curve`` over eps; images that are misclassified when clean are broken at every eps."""
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
    """Return ``curve`` with points over eps, computed from the rows of its evaluation."""
    return replace(curve, axis="eps", points=distance_points(rows, protocol))


def median_distance(rows: Sequence[Row]) -> float | None:
    """Return the median of the smallest perturbations; None if none was found for half of the images."""
    found = [smallest_perturbation(row) for row in rows]
    middle = median(float("inf") if distance is None else distance for distance in found)
    return middle if middle < float("inf") else None

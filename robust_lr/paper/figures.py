"""The paper's Figures 4 and 5, drawn with matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..data.dataset import evenly_spaced
from ..utils.pictures import empty_figure
from .inspection import Composition

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: maximum number of priors drawn for a stage, so that each stays legible
COLUMNS = 12


def draw_priors(priors: Mapping[str, Tensor], title: str) -> Figure:
    """Draw Figure 4: for each stage a row with the priors of its groups, at most ``COLUMNS``, evenly spaced.

    Args:
        priors: priors after softmax, [groups, K, K], by stage.
        title: name of the network.
    """
    columns = min(COLUMNS, max(len(values) for values in priors.values()))
    figure = empty_figure(1.9 + 0.85 * columns, 0.6 + 1.05 * len(priors))
    grid = figure.subplots(len(priors), columns, squeeze=False)
    shown = {stage: evenly_spaced(len(values), columns).tolist() for stage, values in priors.items()}
    highest = max(float(values[shown[stage]].max()) for stage, values in priors.items())
    for row, (stage, values) in zip(grid, priors.items(), strict=True):
        for axes in row:
            axes.set_axis_off()
        for axes, group in zip(row, shown[stage], strict=False):
            drawn = axes.imshow(values[group].numpy(), vmin=0, vmax=highest, cmap="viridis")
            axes.set_title(f"group {group}", fontsize=7, pad=2)
        side, total = values.shape[-1], len(values)
        groups = f"all {total} groups" if total <= columns else f"{columns} of {total} groups"
        draw_label(row[0], f"{stage}\n{side} x {side}\n{groups}")
    bar = figure.colorbar(drawn, ax=grid.ravel().tolist(), fraction=0.02, pad=0.01)
    bar.ax.tick_params(labelsize=7)
    for side in {values.shape[-1] for values in priors.values()}:
        bar.ax.axhline(1 / side**2, color="white", linewidth=1)
    figure.suptitle(f"{title}: geometric priors after softmax (white line: uniform weights)", fontsize=9)
    return figure


def draw_compositions(image: Tensor, pixel: tuple[int, int], found: Sequence[Composition], title: str) -> Figure:
    """Draw Figure 5: for each stage the query and key maps, and the weights of the pixel's window over the image.

    Args:
        image: [C, H, W] float32 in [0, 1].
        pixel: row and column in the image.
        found: one composition per stage, see ``inspection.compute_compositions``.
        title: name of the network.
    """
    figure = empty_figure(8.6, 0.6 + 2.35 * len(found))
    grid = figure.subplots(len(found), 3, squeeze=False)
    height, width = image.shape[1:]
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    for row, one in zip(grid, found, strict=True):
        both = torch.cat([one.query.flatten(), one.key.flatten()])
        lowest, highest = float(both.min()), float(both.max())
        for axes, values, name in zip(row, (one.query, one.key), ("query", "key"), strict=False):
            drawn = axes.imshow(values.numpy(), vmin=lowest, vmax=highest, cmap="viridis", extent=extent)
            axes.set_title(f"{name} map, {values.shape[0]} x {values.shape[1]}", fontsize=8)
            axes.plot(pixel[1], pixel[0], marker="+", color="red", markersize=8)
        figure.colorbar(drawn, ax=list(row[:2]), fraction=0.046, pad=0.02).ax.tick_params(labelsize=7)
        draw_weights(figure, row[2], image, pixel, one, extent)
        for axes in row:
            axes.set_xticks([])
            axes.set_yticks([])
        row[0].set_ylabel(f"{one.stage}, group {one.group}", fontsize=9)
    figure.suptitle(f"{title}: composition at row {pixel[0]}, column {pixel[1]}", fontsize=9)
    return figure


def draw_weights(
    figure: Figure,
    axes: Any,
    image: Tensor,
    pixel: tuple[int, int],
    one: Composition,
    extent: tuple[float, float, float, float],
) -> None:
    """Draw the weights of a window over the gray image, at its position and to scale, with a frame."""
    from matplotlib.patches import Rectangle

    axes.imshow(image.mean(0).numpy(), cmap="gray", vmin=0, vmax=1, extent=extent)
    side = one.weights.shape[0]
    down, across = one.cell
    top, left = ((at - side // 2) * cell - 0.5 for at, cell in zip(one.center, one.cell, strict=True))
    bottom, right = top + side * down, left + side * across
    highest = float(one.weights.nan_to_num().max())
    place = (left, right, bottom, top)
    weights = one.weights.numpy()
    drawn = axes.imshow(weights, cmap="inferno", extent=place, alpha=0.65, vmin=0, vmax=highest, zorder=2)
    axes.add_patch(
        Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor="white", linewidth=1, zorder=3)
    )
    axes.plot(pixel[1], pixel[0], marker="+", color="red", markersize=8, zorder=4)
    axes.set_xlim(extent[0], extent[1])
    axes.set_ylim(extent[2], extent[3])
    axes.set_title(f"weights of the {side} x {side} window", fontsize=8)
    figure.colorbar(drawn, ax=axes, fraction=0.046, pad=0.02).ax.tick_params(labelsize=7)


def draw_label(axes: Any, words: str) -> None:
    """Write a label to the left of axes without an axis label."""
    axes.text(-0.15, 0.5, words, transform=axes.transAxes, ha="right", va="center", fontsize=8)

"""Which tiles a network needs: from its receptive field, so that the tiled map is that of the whole scene."""

from __future__ import annotations

from math import lcm

from torch import nn

from seawall.models.receptive_field import ReceptiveField, receptive_field
from seawall.scenes.tiles import ALIGN, Plan, round_up

TILE = 512
"""Side of a tile where the receptive field asks for no larger one."""
UNBOUNDED_OVERLAP = 128
"""Overlap for a network without a bound: its map depends on the tiles whatever the overlap, and a flag says so."""
LARGE = 1024
"""Side up to which a tile grows to hold six overlaps, so that a pixel is predicted 1.44 times on average; beyond it
three are enough (2.25 times), because the features of a tile have to fit into memory."""


def plan_tiles(
    model: nn.Module, height: int, width: int, tile: int | None, overlap: int | None
) -> tuple[Plan, tuple[str, ...]]:
    """Plan the tiles of a scene for a network.

    Args:
        model: Any module with a `spec`.
        height: Rows of the scene.
        width: Columns of the scene.
        tile: Side of a tile; chosen for the receptive field where None.
        overlap: Pixels that neighbors share; twice the receptive field, rounded up, where None.

    Returns:
        The tiles, and flags that say where the map may differ from that of the whole scene.

    Raises:
        UsageError: Tile and overlap are no multiples of what the network can be shifted by, or the tile is too small.
    """
    field = receptive_field(model)
    step = lcm(ALIGN, field.stride)
    if overlap is None:
        overlap = round_up(UNBOUNDED_OVERLAP if field.reach is None else 2 * field.reach, step)
        if tile is not None and 2 * overlap > tile:  # the tile was asked for: as much overlap as it can hold
            overlap = tile // 2 // step * step
    if tile is None:
        tile = round_up(max(TILE, min(6 * overlap, LARGE), 3 * overlap), step)
    enough = field.reach is not None and 2 * field.reach <= overlap
    margin = max(field.reach or 0, overlap // 4) if enough else overlap // 4
    plan = Plan.of(height, width, tile, overlap, margin, field.stride)
    return plan, () if plan.count == 1 else _flags(field, overlap)


def _flags(field: ReceptiveField, overlap: int) -> tuple[str, ...]:
    if field.reach is None:
        return ("receptive field unknown: how far the network looks has no bound, so other tiles give another map",)
    if 2 * field.reach > overlap:
        return (
            f"overlap below receptive field: tiles share {overlap} pixels and the network looks {field.reach} pixels "
            f"far, so other tiles give another map; from {2 * field.reach} pixels on it is that of the whole scene",
        )
    return ()

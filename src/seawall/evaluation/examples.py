"""Example chips on disk: what a person looks at, clean beside attacked."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from seawall.arrays import BoolArray, FloatArray
from seawall.errors import DataError
from seawall.geo.preview import Stretch, rgb_channels
from seawall.io import open_atomic, write_atomic


def write_example(
    folder: Path,
    *,
    chip: str,
    method: str,
    threat: str,
    model: str,
    clean: FloatArray,
    attacked: FloatArray,
    label: NDArray[np.integer],
    pred_clean: NDArray[np.integer],
    pred_attacked: NDArray[np.integer],
    seen: BoolArray,
    valid: BoolArray,
    bands: Sequence[str],
    target: NDArray[np.integer] | None = None,
    restricted: FloatArray | None = None,
    pred_restricted: NDArray[np.integer] | None = None,
    label_after: NDArray[np.integer] | None = None,
    valid_after: BoolArray | None = None,
    extra: Mapping[str, str | float] | None = None,
    name: str | None = None,
) -> Path:
    """Write one chip as previews and class maps: `<name>.npz`, with `<name>.json` beside it.

    Clean and attacked are stretched alike, by the seen pixels of the clean image, so that what differs is the
    attack. The noise is gray where nothing was changed; its largest change spans the gray scale, of the restricted noise too.

    Args:
        folder: Where the two files go.
        chip: Chip id.
        method: The attack.
        threat: Threat as text.
        model: Model name in the run.
        clean: (C, H, W) in data units.
        attacked: (C, H, W) in data units.
        label: (H, W) true class.
        pred_clean: (H, W) predicted class of the clean image.
        pred_attacked: (H, W) predicted class of the attacked image.
        seen: (H, W) pixels with data.
        valid: (H, W) pixels with a label that counts.
        bands: Band ids in the order of the channels.
        target: (H, W) class that the adversary wants, where it has a target.
        restricted: (C, H, W) the image of the attack on the class's pixels alone, in data units.
        pred_restricted: (H, W) predicted class of that image.
        label_after: (H, W) true class of the attacked image, where a corruption moved it.
        valid_after: (H, W) pixels of the attacked image with a label that counts.
        extra: Further facts for the JSON file.
        name: Stem of the files; made from the chip id if None.

    Returns:
        The path of the npz file.

    Raises:
        DataError: The arrays do not have one height and width.
    """
    more = [array for array in (target, restricted, pred_restricted, label_after, valid_after) if array is not None]
    arrays = (clean, attacked, label, pred_clean, pred_attacked, seen, valid, *more)
    shapes = {a.shape[-2:] for a in arrays}
    if len(shapes) != 1 or clean.shape != attacked.shape or clean.shape[0] != len(bands):
        raise DataError(
            f"example {chip}: expected one grid and {len(bands)} bands, got {sorted(a.shape for a in arrays)}; "
            f"pass what belongs to one chip"
        )
    stem = _safe_stem(name or chip)
    at = rgb_channels(bands)
    stretch = Stretch.of(clean[at], seen)
    change = np.abs((attacked - clean)[:, seen]).max(initial=0.0)
    panels: dict[str, NDArray[np.generic]] = {}
    if target is not None:
        panels["target"] = target.astype(np.int16)
    if restricted is not None and pred_restricted is not None:
        panels["noise_restricted"] = _noise_preview((restricted - clean)[at], seen, float(change))
        panels["pred_restricted"] = pred_restricted.astype(np.int16)
    if label_after is not None and valid_after is not None:
        panels |= {"label_after": label_after.astype(np.int16), "valid_after": valid_after}
    with open_atomic(folder / f"{stem}.npz") as file:
        np.savez_compressed(
            file,
            clean=stretch(clean[at], seen),
            attacked=stretch(attacked[at], seen),
            noise=_noise_preview((attacked - clean)[at], seen, float(change)),
            label=label.astype(np.int16),
            pred_clean=pred_clean.astype(np.int16),
            pred_attacked=pred_attacked.astype(np.int16),
            valid=valid,
            **panels,  # type: ignore[arg-type]
        )
    facts = {"chip": chip, "method": method, "threat": threat, "model": model, "largest_change": float(change)}
    facts |= {"preview_bands": [bands[i] for i in at], **(extra or {})}
    write_atomic(folder / f"{stem}.json", json.dumps(facts, indent=1, sort_keys=True) + "\n")
    return folder / f"{stem}.npz"


def _safe_stem(name: str) -> str:
    """Return a file name that no path separator can leave.

    Example:
        >>> _safe_stem("../a/b c")
        'a_b_c'
    """
    return re.sub(r"[^\w.@%+-]+", "_", name).lstrip("._")[:150] or "chip"


def _noise_preview(change: FloatArray, seen: BoolArray, largest: float) -> NDArray[np.uint8]:
    share = change / largest if largest > 0 else np.zeros_like(change)
    picture = np.clip(128 + share * 127, 0, 255).round().astype(np.uint8)
    return np.ascontiguousarray(np.where(seen, picture, 128).astype(np.uint8).transpose(1, 2, 0))

"""The layers of a map: what a pixel of each is, how it is stored, and how it is colored."""

from __future__ import annotations

import colorsys
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from seawall.arrays import ByteArray, FloatArray
from seawall.class_names import SET_COLORS
from seawall.errors import UsageError, did_you_mean
from seawall.inference.tiling import Strip

NODATA = 255
STORED_STEPS = 250
"""Shares are stored as whole 1/250ths: value = stored * 0.004."""
SCALE = 1 / STORED_STEPS

ClassColor = tuple[int, int, int]

_USUAL_COLORS: Mapping[str, ClassColor] = {
    "land": (222, 211, 180),
    "water": (33, 102, 172),
    "river": (33, 102, 172),
    "lake": (67, 147, 195),
    "vegetation": (77, 146, 33),
    "forest": (39, 100, 25),
    "grass": (161, 215, 106),
    "soil": (191, 129, 45),
    "sand": (246, 232, 195),
    "urban": (178, 24, 43),
    "snow": (247, 247, 247),
    "cloud": (217, 217, 217),
    "shadow": (77, 77, 77),
}
CANNOT_TELL = 2
"""Value of `sets` where neither the class nor the others can be ruled out."""


@dataclass(frozen=True)
class ReportedClass:
    """The class that is reported, and between which of its probabilities it cannot be told from the others.

    Args:
        klass: Index of the class whose probability, area and uncertainty are reported.
        unsure: Probabilities from the first up to the second are unsure.
    """

    klass: int
    unsure: tuple[float, float]


@dataclass(frozen=True)
class Layer:
    """One layer of a map.

    Args:
        title: A few words for people.
        quantity: What a pixel is; `{klass}` and `{classes}` stand for the class and the number of classes.
        values: From the probabilities (K, H, W), the disagreement (H, W) and the reported class to a share, or an index.
        stored: "share", as 1/250ths, or "index".
        when: "always", where the predictor has several "passes", or only where it is "asked" for.
    """

    title: str
    quantity: str
    values: Callable[[FloatArray, FloatArray | None, ReportedClass], FloatArray | ByteArray]
    stored: Literal["share", "index"] = "share"
    when: Literal["always", "passes", "asked"] = "always"


def _top_two(p: FloatArray) -> FloatArray:
    return np.sort(p, 0)[-2:] if len(p) > 1 else np.concatenate([np.zeros_like(p), p])


def _relative_entropy(p: FloatArray, _: FloatArray | None, __: ReportedClass) -> FloatArray:
    entropy = np.zeros(p.shape[1:], np.float32)
    for layer in p:
        entropy -= layer * np.log(np.maximum(layer, np.float32(1e-12)))
    return entropy / np.float32(np.log(max(len(p), 2)))


def _disagreement(p: FloatArray, found: FloatArray | None, _: ReportedClass) -> FloatArray:
    """Return the mutual information over ln K; without several passes it is zero by definition."""
    return np.zeros_like(p[0]) if found is None else found / np.float32(np.log(max(len(p), 2)))


def prediction_sets(p: FloatArray, reported: ReportedClass) -> ByteArray:
    """Return 1 where the class is sure, 0 where it is ruled out, and `CANNOT_TELL` between; no pixel that is mapped as the class is ruled out.

    Example:
        >>> p = np.array([[[0.9, 0.5, 0.1]], [[0.1, 0.5, 0.9]]], np.float32)
        >>> prediction_sets(p, ReportedClass(1, (0.2, 0.8))).tolist()
        [[0, 2, 1]]
    """
    of_class, (low, high) = p[reported.klass], reported.unsure
    possible = (of_class >= low) | (of_class >= p.max(0))  # of three classes one may win with less than a half
    return np.where(of_class >= high, 1, np.where(possible, CANNOT_TELL, 0)).astype(np.uint8)


LAYERS: Mapping[str, Layer] = {
    "class": Layer(
        "Class", "index of the most probable class", lambda p, m, r: p.argmax(0).astype(np.uint8), stored="index"
    ),
    "probability": Layer("Probability of {klass}", "probability of {klass}", lambda p, m, r: p[r.klass]),
    "uncertainty": Layer(
        "Entropy over ln K", "entropy of the class probabilities over ln {classes}: 0 sure, 1 no idea", _relative_entropy
    ),
    "sets": Layer(
        "{klass}, other, cannot tell", "0 is no {klass}, 1 is {klass}, 2 cannot be told",
        lambda p, m, r: prediction_sets(p, r), stored="index",
    ),
    "mutual-information": Layer(
        "Disagreement of the passes", "mutual information of class and pass over ln {classes}", _disagreement, when="passes"
    ),
    "margin": Layer(
        "Margin", "largest less second largest probability: small is unsure",
        lambda p, m, r: np.diff(_top_two(p), axis=0)[0], when="asked",
    ),
    "variation-ratio": Layer("Variation ratio", "1 less the largest probability", lambda p, m, r: 1 - p.max(0), when="asked"),
}  # fmt: skip
"""All layers by their name in the output buffer, in the order of the products."""


def chosen_layers(asked: Sequence[str], passes: int) -> tuple[str, ...]:
    """Return the layers of a map.

    Args:
        asked: Layers that are not there by themselves.
        passes: Passes of the predictor.

    Raises:
        UsageError: There is no layer of that name.
    """
    check_layers(asked)
    usual = {"always": True, "passes": passes > 1, "asked": False}
    return tuple(name for name, layer in LAYERS.items() if usual[layer.when] or name in asked)


def check_layers(asked: Sequence[str]) -> None:
    """Check names of layers.

    Raises:
        UsageError: There is no layer of that name.
    """
    for name in asked:
        if name not in LAYERS:
            raise UsageError(f"layers: unknown {name!r}; {did_you_mean(name, LAYERS)}")


def encode_layers(strip: Strip, classes: int, reported: ReportedClass, layers: Sequence[str]) -> dict[str, ByteArray]:
    """Return layers of a strip as bytes; unseen pixels are `NODATA` in each."""
    p = strip.channels[:classes]
    further = strip.channels[classes] if len(strip.channels) > classes else None
    made: dict[str, ByteArray] = {}
    for name in layers:
        layer = LAYERS[name]
        values = layer.values(p, further, reported)
        made[name] = np.asarray(values, np.uint8) if layer.stored == "index" else _to_bytes(np.asarray(values))
        made[name][~strip.seen] = NODATA
    return made


def layer_names(klass: str, layers: Sequence[str] = tuple(LAYERS)) -> dict[str, str]:
    """Return the name of each layer's product: that of the probability is the class.

    Example:
        >>> layer_names("forest", ("class", "probability"))
        {'class': 'class', 'probability': 'forest'}
    """
    slug = slug_of(klass)
    own = f"{slug}-probability" if slug in LAYERS else slug
    return {layer: own if layer == "probability" else layer for layer in layers}


def index_labels(layer: str, classes: Sequence[str], klass: str) -> dict[int, tuple[str, ClassColor]]:
    """Return the name and color of each index of the layers that hold one."""
    if layer == "sets":
        other = next((name for name in classes if name != klass), "other") if len(classes) == 2 else f"no {klass}"
        return dict(enumerate(zip((other, klass, "cannot tell"), SET_COLORS, strict=True)))
    colors = class_palette(classes)
    return {k: (name, colors[k]) for k, name in enumerate(classes)}


def slug_of(name: str) -> str:
    """Return a class name that is safe in a file name and a JSON key.

    Example:
        >>> slug_of("bare soil")
        'bare_soil'
    """
    return re.sub(r"[^0-9A-Za-z_-]+", "_", name) or "class"


def class_palette(classes: Sequence[str]) -> dict[int, ClassColor]:
    """Return a color per class: a fixed one for common names, else one of evenly spread hues."""
    spread = [colorsys.hls_to_rgb(0.08 + 0.618034 * k % 1, 0.5, 0.55) for k in range(len(classes))]
    made: dict[int, ClassColor] = {}
    for k, name in enumerate(classes):
        red, green, blue = (round(255 * part) for part in spread[k])
        made[k] = _USUAL_COLORS.get(name.lower(), (red, green, blue))
    return made


def _to_bytes(share: FloatArray) -> ByteArray:
    return np.clip(np.rint(share * STORED_STEPS), 0, STORED_STEPS).astype(np.uint8)

"""What every label rule must keep."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from seawall.arrays import BoolArray, FloatArray
from seawall.errors import RadiometryError
from seawall.labels.rules import UNDEFINED_LABEL, LabelRule, OtsuRule, RuleLabel, ThresholdRule, parse_rule
from seawall.registry import Entry
from seawall.testing.assertions import made
from seawall.testing.fixtures import ground_spectra

SIDE = 48


@dataclass(frozen=True)
class _LakeScene:
    image: FloatArray
    water: BoolArray
    seen: BoolArray
    bands: tuple[str, ...]
    unit: str


def check_its_text_is_read_back(entry: Entry) -> None:
    """Its text in recipes gives the same rule: an index with a threshold, or its name and settings."""
    rule = made(entry, LabelRule)
    settings = [f"{key}={value}" for key, value in entry.smoke.items()]
    text = str(rule) if isinstance(rule, ThresholdRule | OtsuRule) else " ".join([entry.name, *settings])
    assert parse_rule(text) == rule, f"{text!r} is read as {parse_rule(text)!r}"


def check_only_seen_pixels_are_labelled(entry: Entry) -> None:
    """Labels are uint8 0, 1 and 255, unseen pixels have 255, and what they hold changes no other; a note says why."""
    rule, lake = made(entry, LabelRule), _lake_scene(made(entry, LabelRule))
    found = _label(rule, lake)
    assert found.label.dtype == np.uint8 and found.label.shape == lake.seen.shape, "expected uint8 (H, W)"
    assert set(np.unique(found.label)) <= {0, 1, UNDEFINED_LABEL}, f"labels {np.unique(found.label).tolist()}"
    assert (found.label[~lake.seen] == UNDEFINED_LABEL).all(), "an unseen pixel is labelled"
    assert found.note, "the note is empty"
    for value in (0.0, 0.7, np.nan):
        other = replace(lake, image=np.where(lake.seen, lake.image, np.float32(value)))
        assert np.array_equal(_label(rule, other).label, found.label), f"{value} in unseen pixels changes the label"


def check_it_finds_a_lake_scene(entry: Entry) -> None:
    """Clear water among soil, crops and forest is labelled as water, and they as land, in 95 % of the seen pixels."""
    rule, lake = made(entry, LabelRule), _lake_scene(made(entry, LabelRule))
    right = (_label(rule, lake).label == lake.water)[lake.seen].mean()
    assert right >= 0.95, f"{right:.3f} of the pixels are right"


def check_it_is_deterministic_and_writes_nothing(entry: Entry) -> None:
    """Two calls give the same label and note; image and mask stay as they were."""
    rule, lake = made(entry, LabelRule), _lake_scene(made(entry, LabelRule))
    image, seen = lake.image.copy(), lake.seen.copy()
    first, second = _label(rule, lake), _label(rule, lake)
    assert np.array_equal(first.label, second.label) and first.note == second.note, "two calls differ"
    assert np.array_equal(lake.image, image) and np.array_equal(lake.seen, seen), "the rule wrote to its input"


def check_a_constant_image_has_one_label(entry: Entry) -> None:
    """Where all seen pixels are equal, they have the same label; an image without a seen pixel has none."""
    rule, lake = made(entry, LabelRule), _lake_scene(made(entry, LabelRule))
    for row, col in ((0, 0), (SIDE // 2, SIDE // 2)):
        flat = replace(lake, image=np.broadcast_to(lake.image[:, row, col, None, None], lake.image.shape).copy())
        found = np.unique(_label(rule, flat).label[lake.seen])
        assert len(found) == 1, f"a constant image has labels {found.tolist()}"
    dark = replace(lake, seen=np.zeros_like(lake.seen))
    assert (_label(rule, dark).label == UNDEFINED_LABEL).all(), "an image without a seen pixel is labelled"


def _label(rule: LabelRule, lake: _LakeScene) -> RuleLabel:
    return rule(lake.image, lake.seen, lake.bands, lake.unit)


def _lake_scene(rule: LabelRule) -> _LakeScene:
    """Return a lake in reflectance, or in backscatter for a rule that refuses reflectance."""
    optical = _lake_scene_in("reflectance")
    try:
        _label(rule, optical)
    except RadiometryError:
        return _lake_scene_in("sigma0_db")
    return optical


def _lake_scene_in(unit: str) -> _LakeScene:
    bands, wet, dry = ground_spectra(unit)
    rng, away = np.random.default_rng(0), np.hypot(*np.mgrid[:SIDE, :SIDE] - SIDE / 2)
    water = away < 0.4 * SIDE
    land = dry[rng.integers(len(dry), size=(SIDE, SIDE))]
    spread = 0.002 if unit == "reflectance" else 0.5
    image = np.where(water[..., None], wet, land) + rng.normal(0, spread, (SIDE, SIDE, len(bands)))
    seen = rng.random((SIDE, SIDE)) < 0.9
    return _LakeScene(image.astype(np.float32).transpose(2, 0, 1).copy(), water, seen, bands, unit)


CHECKS = [value for name, value in list(globals().items()) if name.startswith("check_")]

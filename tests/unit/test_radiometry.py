"""Radiometry of hand-made numbers, and of every family of real chips."""

import csv
from pathlib import Path

import numpy as np
import pytest

from seawall.errors import RadiometryError
from seawall.geo.radiometry import (
    Detection,
    Hints,
    detect_unit,
    hints_of,
    scale_for,
    to_physical,
)
from seawall.geo.raster import Grid, Raster, read_raster

ALL = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")
SIX = ("B02", "B03", "B04", "B08", "B11", "B12")
SEEN = np.ones((32, 32), bool)


def ground(bands: tuple[str, ...] = SIX, low: float = 0.01, high: float = 0.35) -> np.ndarray:
    rng = np.random.default_rng(0)
    image = rng.uniform(low, high, (len(bands), 32, 32)).astype(np.float32)
    if "B10" in bands:
        image[bands.index("B10")] = rng.uniform(0.0008, 0.002, (32, 32))
    return image


def kind(data: np.ndarray, bands: tuple[str, ...] = SIX, hints: Hints = Hints()) -> str:
    return detect_unit(data.astype(np.float32), SEEN, bands, hints).kind


def test_six_kinds_and_an_honest_unknown() -> None:
    truth = ground()
    power = np.random.default_rng(1).gamma(4.4, 0.02, (2, 32, 32)).astype(np.float32)
    assert kind(truth) == "reflectance"
    assert kind(np.round(truth * 1e4)) == "dn10000"
    assert kind(np.round(truth * 1e4) + 1000) == "dn10000_offset"
    assert kind(np.round(truth * 600), hints=Hints(dtype="uint8")) == "uint8"
    assert kind(power, ("VV", "VH")) == "linear"
    assert kind(10 * np.log10(power), ("VV", "VH")) == "db"
    assert kind(np.round(power * 1e4), ("VV", "VH")) == "unknown"
    assert kind(truth * 1e6) == "unknown"
    assert kind(np.round(truth * 255) / 255) == "unknown"
    assert kind(ground(ALL)[[0, 1]], ("B03", "VV")) == "unknown"


def test_the_cirrus_band_proves_the_offset() -> None:
    bright = ground(ALL, 0.2, 0.6)
    assert detect_unit(np.round(bright * 1e4) + 1000, SEEN, ALL).certain
    assert kind(np.round(bright * 1e4) + 1000, ALL) == "dn10000_offset"
    assert kind(np.round(bright * 1e4), ALL) == "dn10000"


def test_a_bright_scene_is_not_guessed() -> None:
    bright = np.round(ground(low=0.2, high=0.6) * 1e4)
    found = detect_unit(bright, SEEN, SIX)
    assert (found.kind, found.certain) == ("unknown", False)
    with pytest.raises(RadiometryError, match="a bright scene, or the offset"):
        scale_for(found)


@pytest.mark.parametrize(
    ("hints", "expected"),
    [
        (Hints(gain=1e-4, offset=-0.1), "dn10000_offset"),
        (Hints(gain=1e-4, offset=0.0), "dn10000"),
        (Hints(gain=1e-4, offset=-0.1, offset_applied=True), "dn10000"),
        (Hints(offset_applied=False, baseline="05.09"), "dn10000_offset"),
        (Hints(offset_applied=False, baseline="02.14"), "dn10000"),
        (Hints(baseline="02.14"), "dn10000"),
        (Hints(gain=1e-4), "dn10000"),
        (Hints(baseline="05.09"), "unknown"),
        (Hints(), "unknown"),
    ],
)
def test_metadata_decides_what_values_leave_open(hints: Hints, expected: str) -> None:
    found = detect_unit(np.round(ground(low=0.2, high=0.6) * 1e4), SEEN, SIX, hints)
    assert found.kind == expected
    assert not found.certain


@pytest.mark.parametrize(
    ("shift", "hints"),
    [
        (0, Hints(gain=1e-4, offset=-0.1)),
        (0, Hints(offset_applied=False, baseline="04.00")),
        (1000, Hints(offset_applied=True)),
        (1000, Hints(gain=1e-4, offset=-0.1, offset_applied=True)),
        (1000, Hints(baseline="03.01")),
        (1000, Hints(gain=1e-4, offset=0.0)),
    ],
)
def test_a_contradicted_offset_is_an_error(shift: float, hints: Hints) -> None:
    with pytest.raises(RadiometryError, match=r"expected what the metadata says .* got dn10000"):
        detect_unit(np.round(ground() * 1e4) + shift, SEEN, SIX, hints)


@pytest.mark.parametrize(
    ("shift", "hints"),
    [
        (0, Hints(offset_applied=True, baseline="05.09")),
        (0, Hints(baseline="05.09")),
        (1000, Hints(baseline="05.09")),
        (1000, Hints(gain=1e-4, offset=-0.1)),
    ],
)
def test_the_offset_is_taken_out_once(shift: float, hints: Hints) -> None:
    truth = ground()
    stored = np.round(truth * 1e4).astype(np.float32) + np.float32(shift)
    scale = scale_for(detect_unit(stored, SEEN, SIX, hints), hints)
    np.testing.assert_allclose(to_physical(stored, SEEN, scale, "reflectance"), truth, atol=6e-5)


def test_a_contradicted_unit_is_an_error() -> None:
    with pytest.raises(RadiometryError, match="expected reflectance as declared, got linear"):
        detect_unit(np.full((1, 32, 32), 0.02, np.float32), SEEN, ("VV",), Hints(unit="reflectance"))


def test_linear_power_becomes_decibels_and_unseen_pixels_the_fill() -> None:
    power = np.full((2, 2, 2), 0.01, np.float32)
    seen = np.array([[True, True], [True, False]])
    scale = scale_for(Detection("linear", "", True), Hints(unit="gamma0_db"))
    out = to_physical(power, seen, scale, "gamma0_db")
    assert out.dtype == np.float32
    np.testing.assert_allclose(out[0], [[-20, -20], [-20, -30]], atol=1e-5)


def test_unseen_nan_never_reaches_the_result() -> None:
    data = np.array([[[0.1, np.nan]]], np.float32)
    out = to_physical(data, np.array([[True, False]]), scale_for(Detection("reflectance", "", True)), "reflectance")
    assert out.tolist() == [[[pytest.approx(0.1), 0.0]]]


def test_a_stretched_picture_is_refused_where_reflectance_is_needed() -> None:
    scale = scale_for(Detection("uint8", "8-bit picture", True))
    assert scale.unit == "stretched"
    data = np.full((1, 2, 2), 255, np.float32)
    assert to_physical(data, SEEN[:2, :2], scale, "stretched").max() == 1
    with pytest.raises(RadiometryError, match="has no physical scale"):
        to_physical(data, SEEN[:2, :2], scale, "reflectance")


@pytest.mark.parametrize(
    ("hints", "expected"),
    [
        (Hints(dtype="int16", gain=1 / 255), "uint8"),
        (Hints(dtype="int16", gain=float(np.float32(1 / 255)), offset=0.0), "uint8"),
        (Hints(dtype="int16", gain=1e-4), "dn10000"),
        (Hints(dtype="int16", gain=1 / 255, offset=0.1), "dn10000_offset"),
    ],
)
def test_levels_that_a_chip_folder_stores_are_a_picture_again(hints: Hints, expected: str) -> None:
    levels = np.round(ground() * 600)
    assert detect_unit(levels, SEEN, SIX, hints).kind == expected


def test_a_raster_says_what_it_declares() -> None:
    raster = Raster(ground(), SEEN, SIX, Grid(32, 32), "uint16", scales=(1e-4,) * 6, offsets=(-0.1,) * 6)
    assert hints_of(raster) == Hints(dtype="uint16", gain=1e-4, offset=-0.1)
    plain = Raster(
        ground(), SEEN, SIX, Grid(32, 32), tags={"UNIT": "reflectance"}, scales=(1.0,) * 6, offsets=(0.0,) * 6
    )
    assert hints_of(plain) == Hints(dtype="float32", unit="reflectance")
    with pytest.raises(RadiometryError, match="one scale for all bands"):
        hints_of(Raster(ground(), SEEN, SIX, Grid(32, 32), scales=(1.0, 2.0), offsets=(0.0, 0.0)))


def test_an_image_without_seen_pixels_tells_nothing() -> None:
    found = detect_unit(ground(), ~SEEN, SIX)
    assert (found.kind, found.reason) == ("unknown", "no pixel is seen")


def test_every_family_of_real_chips_is_recognized(real_chips: Path) -> None:
    """What the index says in words about each file is what the detector finds in its values alone."""
    wrong = []
    with (real_chips / "index.csv").open() as file:
        for row in csv.DictReader(file):
            for image in ("s1", "s2", "s1_pre", "s2_pre"):
                if not row[image]:
                    continue
                raster = read_raster(real_chips / row[image])
                found = detect_unit(raster.data, raster.seen, raster.bands, hints_of(raster))
                if found.kind not in _expected(row[image + "_scale"], raster.seen.any()):
                    wrong.append((row["id"], image, row[image + "_scale"], found))
    assert not wrong


def _expected(words: str, seen: bool) -> tuple[str, ...]:
    if not seen:
        return ("unknown",)
    if "uint8" in words:
        return ("uint8",)
    if "dB" in words:
        return ("db",)
    if "offset (baseline" in words:
        return ("dn10000_offset",)
    if "some have +1000" in words:
        return ("dn10000", "dn10000_offset", "unknown")
    return ("dn10000",)

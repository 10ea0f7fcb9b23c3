"""Which pixels count as seen, and in which unit: the same for chips and scenes, whatever a few fill pixels hold."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine

from seawall.data.curate import curate_chips
from seawall.errors import DataError, ImageryError, RadiometryError
from seawall.geo.nodata import PixelCounts, nodata_rule
from seawall.geo.radiometry import Detection, Hints, detect_unit, scale_for
from seawall.geo.unit_detection import EXTREME_SHARE
from seawall.inference.predict import predict_scene
from seawall.report.flags import explain
from tiny import PixelModel

BANDS = ("B02", "B03", "B08")
AT = Affine(10, 0, 500000, 0, -10, 5000000)
FILLS = (300.0, 9999.0, 32767.0, 65535.0, 1e10, 1e20, 3.4e38)
DN = scale_for(Detection("dn10000", "", True))
OFFSET = scale_for(Detection("dn10000_offset", "", True))
FLOAT = scale_for(Detection("reflectance", "", True))
POWER = scale_for(Detection("linear", "", True))


def ground(size: int = 96, seed: int = 0) -> np.ndarray:
    """Reflectance (3, size, size): water on the left third."""
    wet = np.broadcast_to(np.arange(size) < size // 3, (size, size))
    image = np.stack([np.full(wet.shape, 0.05), np.where(wet, 0.08, 0.1), np.where(wet, 0.02, 0.3)])
    return (image + np.random.default_rng(seed).normal(0, 0.004, image.shape)).clip(0.001, 1).astype(np.float32)


def save(path: Path, data: np.ndarray, nodata: float | None = None, **more: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = data.shape
    profile = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": data.dtype.name}
    with rasterio.open(path, "w", **profile, crs="EPSG:32633", transform=AT, nodata=nodata) as sink:
        sink.descriptions = BANDS[:count]
        for name, value in more.items():
            setattr(sink, name, value)
        sink.write(data)
    return path


def chips(tmp_path: Path, data: np.ndarray, nodata: float | None = None, **more: object):
    """Curate one scene as one chip, with the bands of the model."""
    save(tmp_path / "pairs/images/a.tif", data, nodata, **more)
    label = np.zeros((1, *data.shape[1:]), np.uint8)
    save(tmp_path / "pairs/labels/a.tif", label)
    return curate_chips(tmp_path / "pairs", tmp_path / "chips", bands=BANDS[1:], chip=1024).folder


def ids(flags: tuple[str, ...]) -> set[str]:
    return {explain(flag).id for flag in flags}


def both(tmp_path: Path, data: np.ndarray, nodata: float | None = None, **more: object):
    """The map of a scene and the chip made of it; they must agree on the pixels that count, on their values and flags."""
    result = predict_scene(PixelModel(gain=100.0), save(tmp_path / "a.tif", data, nodata, **more), tmp_path / "out")
    folder = chips(tmp_path, data, nodata, **more)
    with rasterio.open(tmp_path / "out/a.class.tif") as source:
        classes = source.read(1)
    chip, row = folder.read("a"), folder.rows[0]
    np.testing.assert_array_equal(classes != 255, chip.seen)
    water = (chip.image[0] > chip.image[1]) & chip.seen
    assert result.area_km2 == pytest.approx(water.sum() * 1e-4, abs=1e-9)
    known = {"extreme-values", "blank-pixels", "nodata-in-range", "offset-suspected"}
    assert ids(result.flags) & known == set(row.flags) & known
    return result, chip, row


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("place", [(0, 0), (0, 50), (95, 95), (40, 20)])
@pytest.mark.parametrize("bands", [slice(1, 2), slice(None)], ids=["one band", "all bands"])
def test_one_fill_pixel_takes_itself_out_and_nothing_else(
    tmp_path: Path, fill: float, place: tuple[int, int], bands: slice
) -> None:
    data = ground()
    wet = int((data[1] > data[2]).sum())
    data[(bands, *place)] = fill
    result, chip, _ = both(tmp_path, data)
    assert not chip.seen[place] and chip.seen.sum() == chip.seen.size - 1
    assert abs(result.area_km2 - wet * 1e-4) <= 1e-4 + 1e-9
    assert result.radiometry.startswith("reflectance = 1 * stored")
    assert np.median(chip.image[1]) > 0.1
    text = next(flag for flag in result.flags if flag.startswith("extreme-values"))
    assert "0.01% of the pixels outside -0.5 to 5: unseen" in text


@pytest.mark.parametrize("fill", [9999.0, -9999.0])
def test_26_fill_pixels_of_262144_change_26_pixels(tmp_path: Path, fill: float) -> None:
    data = ground(512)
    wet = int((data[1] > data[2]).sum())
    at = np.random.default_rng(1).choice(512 * 512, 26, replace=False)
    data.reshape(3, -1)[:, at] = fill
    result, chip, row = both(tmp_path, data)
    assert abs(result.area_km2 - wet * 1e-4) <= 26e-4
    assert (~chip.seen).sum() == 26 and result.seen_share == pytest.approx(1 - 26 / 512**2)
    assert "extreme-values" in row.flags and any("under 0.01%" in note for note in row.notes)


def test_more_than_a_percent_of_fill_is_refused_by_both(tmp_path: Path) -> None:
    data = ground()
    data[1, :1, :93] = 9999.0  # 93 of 9216 pixels are 1.01 %, in one band of three
    with pytest.raises(RadiometryError, match=r"a\.tif: .*1\.01% of the pixels outside -0\.5 to 5"):
        predict_scene(PixelModel(gain=100.0), save(tmp_path / "a.tif", data), tmp_path / "out")
    assert not list((tmp_path / "out").glob("a.*"))
    with pytest.raises(DataError, match=r"1\.01% of the pixels outside -0\.5 to 5"):
        chips(tmp_path, data)
    assert EXTREME_SHARE == 0.01


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.97])
@pytest.mark.parametrize("fill", [9999.0, -9999.0, 255.0, 32767.0])
def test_undeclared_fill_of_any_share_never_makes_another_unit(share: float, fill: float) -> None:
    data = ground()
    data[:, : round(96 * share)] = fill
    found = detect_unit(data, np.ones((96, 96), bool), BANDS, Hints(dtype="float32"))
    assert found.kind == "unknown" and "% of the pixels outside" in found.reason
    declared = detect_unit(data, np.ones((96, 96), bool), BANDS, Hints(dtype="float32"), (fill,) * 3)
    assert declared.kind == "reflectance"


def test_a_scene_far_larger_than_its_sample_is_refused_or_flagged_by_all_of_its_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from seawall.inference import scene

    monkeypatch.setattr(scene, "SAMPLE_SIDE", 4)
    data = ground()
    data[1, 30, 30:40] = 9999.0  # no window of the sample covers it
    result, chip, _ = both(tmp_path, data)
    assert "extreme-values" in ids(result.flags) and (~chip.seen).sum() == 10
    data[1, 28:31, 24:60] = 9999.0
    with pytest.raises(RadiometryError, match=r"b\.tif: .* 1\.17% of the pixels .* declare them as nodata"):
        predict_scene(PixelModel(gain=100.0), save(tmp_path / "b.tif", data), tmp_path / "out")
    assert not list((tmp_path / "out").glob("b.*"))


def test_digital_numbers_keep_their_unit_and_lose_their_fill(tmp_path: Path) -> None:
    data = np.rint(ground() * 1e4).astype(np.uint16)
    data[1, 5, 5] = 65535
    result, chip, _ = both(tmp_path, data, None)
    assert result.radiometry.startswith("reflectance = 0.0001 * stored") and (~chip.seen).sum() == 1
    assert {"extreme-values", "no-nodata"} <= ids(result.flags)


def test_nodata_inside_the_valid_range_unsees_only_where_all_bands_hold_it(tmp_path: Path) -> None:
    data = np.rint(ground() * 1e4).astype(np.uint16)
    data[2, :, :24] = 0  # near infrared over water, clipped
    data[:, :10, 50:] = 0  # fill
    result, chip, row = both(tmp_path, data, 0)
    assert chip.seen.sum() == chip.seen.size - 460 and chip.seen[:, :24].all()
    assert result.area_km2 == pytest.approx(96 * 32e-4, rel=0.02)
    assert any(flag.startswith("nodata-in-range: 25.00% of the pixels") for flag in result.flags)
    assert any(note.startswith("25.00% of the pixels") for note in row.notes)
    undeclared = predict_scene(PixelModel(gain=100.0), save(tmp_path / "u.tif", data), tmp_path / "out")
    assert undeclared.area_km2 == result.area_km2


def test_nodata_no_unit_can_hold_unsees_where_any_band_holds_it(tmp_path: Path) -> None:
    data = ground()
    data[1, :4], data[2, 4:8], data[0, 8:12] = -9999, np.nan, -9999
    result, chip, row = both(tmp_path, data, -9999)
    assert (~chip.seen).sum() == 8 * 96, "a band that is not used does not matter"
    assert not ids(result.flags) & {"extreme-values", "nodata-in-range"} and not row.flags
    data = np.rint(ground() * 1e4).astype(np.int16)
    data[1, :4] = 30000  # possible in digital numbers: 3.0
    assert both(tmp_path / "dn", data, 30000)[1].seen.all()
    data = ground()
    data[1, :4] = 30000  # impossible in reflectance
    assert (~both(tmp_path / "float", data, 30000)[1].seen).sum() == 4 * 96


def test_zeros_in_every_band_are_unseen_with_a_flag(tmp_path: Path) -> None:
    for dtype in ("float32", "uint16"):
        data = ground() if dtype == "float32" else np.rint(ground() * 1e4)
        data[:, :, 60:] = 0
        data[2, 50:, :10] = 0
        result, chip, _ = both(tmp_path / dtype, data.astype(dtype))
        assert (~chip.seen).sum() == 96 * 36
        assert any(flag.startswith("blank-pixels: 37.50% of the pixels are 0 in every band") for flag in result.flags)


def test_a_raster_of_zeros_is_refused_by_both(tmp_path: Path) -> None:
    for dtype in ("float32", "uint16", "uint8"):
        path = save(tmp_path / f"{dtype}.tif", np.zeros((3, 40, 40), dtype))
        with pytest.raises(ImageryError, match=r"tif: expected pixels, got a raster that is 0 in every band"):
            predict_scene(PixelModel(gain=100.0), path, tmp_path / "out")
        assert not list((tmp_path / "out").glob("*.tif"))
        with pytest.raises(DataError, match="got none"):
            chips(tmp_path / dtype, np.zeros((3, 40, 40), dtype))


def test_an_empty_chip_is_named_by_its_own_file(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    save(tmp_path / "t/here.tif", np.full((3, 32, 32), np.nan, np.float32))
    save(tmp_path / "t/good.tif", ground(32))
    save(tmp_path / "t/label.tif", np.zeros((1, 32, 32), np.uint8))
    rows = [
        f"{name},{name},s2/{name}.tif,label.tif,{' '.join(BANDS)},upstream/of/{name}.tif" for name in ("here", "good")
    ]
    text = "id,group,s2,label,s2_bands,source_paths\n" + "\n".join(rows).replace("s2/", "") + "\n"
    (tmp_path / "t/index.csv").write_text(text)
    report = curate_chips(tmp_path / "t/index.csv", tmp_path / "out", gsd_m=10)
    assert report.skipped[0][1].startswith(str(tmp_path / "t/here.tif")) and "upstream" not in report.skipped[0][1]


@pytest.mark.parametrize("declared", [False, True])
def test_an_offset_that_was_left_in_is_flagged(tmp_path: Path, declared: bool) -> None:
    data = ground() + np.float32(0.1)
    more: dict[str, object] = {}
    if declared:
        data, more = np.rint(data * 1e4).astype(np.uint16), {"scales": (1e-4,) * 3, "offsets": (0.0,) * 3}
    result, _, row = both(tmp_path, data, 0 if declared else None, **more)
    assert "offset-suspected" in row.flags
    assert "0.1 was left in" in next(flag for flag in result.flags if flag.startswith("offset-suspected"))


def test_a_scene_with_a_dark_end_is_not_suspected(tmp_path: Path) -> None:
    assert not ids(both(tmp_path, ground())[0].flags) & {"offset-suspected"}
    data = np.rint(ground() * 1e4).astype(np.uint16)
    more = {"scales": (1e-4,) * 3, "offsets": (0.0,) * 3}
    assert not ids(both(tmp_path / "dn", data, 0, **more)[0].flags) & {"offset-suspected", "extreme-values"}


def test_where_the_offset_is_in_zero_is_no_measurement() -> None:
    data = np.array([[[0, 0, 1100, 1100]], [[0, 1500, 0, 1500]]], np.float32)
    mask = np.ones((1, 4), bool)
    for nodata in ((0.0, 0.0), (None, None)):
        seen, tally = nodata_rule(OFFSET, nodata).apply(data, mask)
        assert seen.tolist() == [[False, False, False, True]]
        assert (tally.extreme, tally.partial, tally.blank) == (0, 0, 0 if nodata[0] == 0 else 3)
    assert nodata_rule(DN, (None, None)).apply(data, mask)[0].tolist() == [[False, True, True, True]]


def test_stretched_pictures_may_be_black() -> None:
    scale = scale_for(Detection("uint8", "", True))
    seen, _ = nodata_rule(scale, (255.0, 255.0)).apply(
        np.float32([[[0, 255, 255]], [[0, 255, 7]]]), np.ones((1, 3), bool)
    )
    assert seen.tolist() == [[True, False, True]]


def test_counts_of_parts_add_up() -> None:
    data = ground()
    data[1, 3, 3], data[:, 60, 7], data[2, 9, 9], data[0, 80, 80] = 1e6, 0, np.nan, -9999
    rule, mask = nodata_rule(FLOAT, (-9999.0,) * 3), np.ones((96, 96), bool)
    mask[90:] = False
    seen, whole = rule.apply(data, mask)
    parts = [rule.apply(data[:, r : r + 32], mask[r : r + 32])[1] for r in (0, 32, 64)]
    assert sum(parts, PixelCounts()) == whole
    assert (whole.pixels, whole.extreme, whole.blank, whole.seen) == (9216, 1, 1, int(seen.sum()))
    assert whole.seen == 90 * 96 - 4 and whole.there == whole.seen + 2


# Sentinel-1


def radar(power: bool, seed: int = 0) -> np.ndarray:
    data = np.random.default_rng(seed).gamma(4.4, 0.02 / 4.4, (2, 64, 64)).astype(np.float32)
    return data if power else 10 * np.log10(data)


@pytest.mark.parametrize("fill", [-9999.0, -999.0, -99.0, 9999.0, 65535.0, 3.4e38])
@pytest.mark.parametrize("power", [True, False], ids=["power", "dB"])
def test_a_few_fill_pixels_do_not_turn_power_into_decibels(fill: float, power: bool) -> None:
    data = radar(power)
    expected = detect_unit(data, np.ones((64, 64), bool), ("VV", "VH")).kind
    assert expected == ("linear" if power else "db")
    data[0, 0, :20] = fill
    found = detect_unit(data, np.ones((64, 64), bool), ("VV", "VH"))
    assert found.kind == expected
    rule = nodata_rule(scale_for(found), (None, None))
    seen, tally = rule.apply(data, np.ones((64, 64), bool))
    rule.check(tally)
    if fill == 9999.0 and power:
        assert seen.all(), "a corner reflector may give 40 dB"
    else:
        assert (~seen).sum() == tally.extreme == 20
    data[0, :20] = fill
    with pytest.raises(RadiometryError, match=r"radar numbers|of the pixels outside"):
        again = detect_unit(data, np.ones((64, 64), bool), ("VV", "VH"))
        rule = nodata_rule(scale_for(again), (None, None))
        rule.check(rule.apply(np.where(data == 9999.0, np.float32(1e6), data), np.ones((64, 64), bool))[1])


def test_power_whose_noise_was_subtracted_stays_power() -> None:
    data = radar(True) - np.float32(0.012)
    assert (data < 0).mean() > 0.1
    found = detect_unit(data, np.ones((64, 64), bool), ("VV", "VH"))
    assert found.kind == "linear"
    assert nodata_rule(scale_for(found), (None, None)).apply(data, np.ones((64, 64), bool))[0].all()

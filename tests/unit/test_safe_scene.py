"""A Sentinel-2 SAFE product is mapped like the GeoTIFF of its bands, as a folder and as a zip."""

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio

from safe_product import product, zipped
from seawall.errors import ImageryError, UsageError
from seawall.imagery.safe import open_safe, write_stack
from seawall.inference.predict import find_scenes, predict_many, predict_scene
from seawall.inference.scene import SafeSource, is_safe, open_scene
from tiny import PixelModel

NAME = "S2A_MSIL2A_20230706T100031_N0509_R122_T33TTG"


def layers(out: Path, name: str) -> list[np.ndarray]:
    found = []
    for layer in ("class", "water", "uncertainty"):
        with rasterio.open(out / f"{name}.{layer}.tif") as source:
            found.append(source.read(1))
    return found


@pytest.mark.parametrize(("baseline", "offsets"), [("05.09", None), ("02.14", "")])
@pytest.mark.parametrize("bands", [("B03", "B08"), ("B11", "B03"), ("B08", "B11", "B03")])
def test_the_map_is_that_of_its_bands_in_one_file(
    tmp_path: Path, baseline: str, offsets: str | None, bands: tuple[str, ...]
) -> None:
    folder = product(tmp_path) if offsets is None else product(tmp_path, baseline, offsets)
    write_stack(open_safe(folder), tmp_path / "bands.tif")
    model, out = PixelModel(*bands), tmp_path / "maps"
    file, safe = predict_scene(model, tmp_path / "bands.tif", out), predict_scene(model, folder, out)
    assert (safe.name, safe.source) == (NAME, f"{NAME}.SAFE")
    assert safe.radiometry == file.radiometry and ("-0.1" in safe.radiometry) == (offsets is None)
    assert (safe.area_km2, safe.seen_share) == (file.area_km2, file.seen_share)
    assert safe.seen_share == (24 * 24 - (1 if "B03" in bands else 0)) / 24**2
    for mine, other in zip(layers(out, NAME), layers(out, "bands"), strict=True):
        np.testing.assert_array_equal(mine, other)


def test_coarse_bands_alone_are_mapped_on_their_own_grid(tmp_path: Path) -> None:
    found = predict_scene(PixelModel("B11"), product(tmp_path), tmp_path / "maps")
    assert (found.height, found.width) == (12, 12)
    assert any("pixels of 20 m" in flag for flag in found.flags)


def test_the_item_names_the_product_and_its_time(tmp_path: Path) -> None:
    predict_scene(PixelModel("B03", "B08"), product(tmp_path), tmp_path / "maps")
    item = json.loads((tmp_path / "maps" / f"{NAME}.json").read_text())
    assert item["properties"]["datetime"] == "2023-07-06T10:00:31Z"
    assert item["properties"]["title"] == f"water map of {NAME}.SAFE"
    link = next(link for link in item["links"] if link["rel"] == "derived_from")
    assert link["href"] == f"../{NAME}.SAFE" and "type" not in link


def test_a_zip_gives_the_map_of_its_folder(tmp_path: Path) -> None:
    folder = product(tmp_path / "made")
    archive = zipped(folder, tmp_path / f"{NAME}.SAFE.zip")
    model = PixelModel("B03", "B08")
    one = predict_scene(model, folder, tmp_path / "one")
    two = predict_scene(model, archive, tmp_path / "two")
    assert (one.name, one.key, one.source, one.digests) == (two.name, two.key, two.source, two.digests)
    assert predict_scene(model, archive, tmp_path / "two").reused


def test_other_pixels_or_metadata_are_another_map(tmp_path: Path) -> None:
    model, folder = PixelModel("B03", "B08"), product(tmp_path)
    first = predict_scene(model, folder, tmp_path / "maps")
    assert predict_scene(model, folder, tmp_path / "maps").key == first.key
    metadata = folder / "MTD_MSIL2A.xml"
    metadata.write_text(metadata.read_text().replace("-1000", "-1010"))
    second = predict_scene(model, folder, tmp_path / "maps")
    assert not second.reused and second.key != first.key


def test_a_folder_of_products_is_one_scene_each(tmp_path: Path) -> None:
    folder = product(tmp_path / "in")
    write_stack(open_safe(folder), tmp_path / "in" / "other.tif", ("B03", "B08"))
    assert [job.name for job in find_scenes(tmp_path / "in", tmp_path / "out")] == [NAME, "other"]
    assert [job.path for job in find_scenes(folder, tmp_path / "out")] == [folder]
    assert [job.name for job in find_scenes(folder / "MTD_MSIL2A.xml", tmp_path / "out")] == [NAME]
    report = predict_many(PixelModel("B03", "B08"), tmp_path / "in", tmp_path / "out")
    assert not report.failed and report.made[0].area_km2 == report.made[1].area_km2


def test_windows_are_those_of_the_whole(tmp_path: Path) -> None:
    source = SafeSource(open_safe(product(tmp_path)), ("B11", "B03"))
    data, seen = source.read(None, ("B03", "B11"))
    part, there = source.read((3, 5, 10, 7), ("B03", "B11"))
    np.testing.assert_array_equal(part, data[:, 3:13, 5:12])
    np.testing.assert_array_equal(there, seen[3:13, 5:12])
    assert not seen[0, 0] and not data[:, 0, 0].any()


def test_what_a_product_lacks_is_named(tmp_path: Path) -> None:
    folder = product(tmp_path)
    with pytest.raises(ImageryError, match="without B12"), open_scene(folder, PixelModel("B03", "B12").spec):
        pass
    with pytest.raises(UsageError, match="expected no names for a SAFE product"):
        predict_scene(PixelModel("B03", "B08"), folder, tmp_path / "maps", bands=("B03", "B08", "B11"))
    empty = tmp_path / "empty.SAFE"
    empty.mkdir()
    with pytest.raises(ImageryError, match="expected a SAFE folder, got none"):
        predict_scene(PixelModel("B03", "B08"), empty, tmp_path / "maps")
    assert not is_safe(tmp_path / "none.SAFE") and not is_safe(tmp_path)


def test_the_offset_is_never_guessed(tmp_path: Path) -> None:
    from seawall.errors import RadiometryError

    with pytest.raises(RadiometryError, match="no ADD_OFFSET"):
        predict_scene(PixelModel("B03", "B08"), product(tmp_path, "04.00", ""), tmp_path / "maps")

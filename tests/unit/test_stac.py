"""STAC items made by hand: scaling as they say it, files only where it is safe, boxes as stored."""

import json
from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from pyproj import Transformer

from seawall.errors import ImageryError, RadiometryError
from seawall.geo.radiometry import Hints
from seawall.geo.raster import Grid, Limits, write_cog
from seawall.imagery.bounding_boxes import BoundingBox
from seawall.imagery.download import Access
from seawall.imagery.stac import StacItem, file_name, load, read_catalog

GRID = Grid(60, 60, Affine(10, 0, 600000, 0, -10, 5000000), "EPSG:32633")
NUMBERS = np.random.default_rng(0).integers(1000, 4000, (2, 60, 60)).astype(np.uint16)


def item(name: str = "one", **properties: object) -> dict[str, object]:
    scaled = {"raster:bands": [{"nodata": 0, "data_type": "uint16", "scale": 1e-4, "offset": -0.1}]}
    return {
        "type": "Feature", "stac_version": "1.0.0", "id": name, "collection": "s2", "links": [],
        "stac_extensions": ["https://stac-extensions.github.io/raster/v1.1.0/schema.json"],
        "geometry": {"type": "Polygon", "coordinates": [[[16, 45], [17, 45], [17, 46], [16, 46], [16, 45]]]},
        "bbox": [16, 45, 17, 46], "properties": {"datetime": "2023-07-06T10:00:31Z", "eo:cloud_cover": 3.0, **properties},
        "assets": {
            "green": {"href": f"./{name}-B03.tif", "eo:bands": [{"name": "green"}], **scaled},
            "nir": {"href": f"./{name}-B08.tif", "eo:bands": [{"name": "B08", "common_name": "nir"}], **scaled},
            "visual": {"href": "./v.tif", "eo:bands": [{"name": "red"}, {"name": "green"}]},
        },
    }  # fmt: skip


def catalog(folder: Path, *names: str, holes: bool = False) -> Path:
    """A static catalog with two-band items; with holes, each item sees its own half only."""
    links = []
    for number, name in enumerate(names):
        for data, band in zip(NUMBERS, ("B03", "B08"), strict=True):
            part = data + np.uint16(number)
            if holes:
                part[:, :30] = part[:, :30] * (number == 0)
                part[:, 30:] = part[:, 30:] * (number == 1)
            write_cog(folder / f"{name}-{band}.tif", part, GRID, bands=(band,), nodata=0)
        (folder / f"{name}.json").write_text(json.dumps(item(name)))
        links.append({"rel": "item", "href": f"./{name}.json"})
    (folder / "catalog.json").write_text(json.dumps({"type": "Catalog", "id": "c", "links": links}))
    return folder / "catalog.json"


def box(grid: Grid = GRID) -> BoundingBox:
    """The box inside the grid."""
    back = Transformer.from_crs("EPSG:32633", "EPSG:4326", always_xy=True)
    (left, top), (right, bottom) = (back.transform(*grid.point(r, c)) for r, c in ((8, 8), (50, 50)))
    return BoundingBox("here", left, right, top, bottom)


@pytest.mark.parametrize(
    ("asset", "properties", "expected"),
    [
        ({"raster:bands": [{"scale": 1e-4, "offset": -0.1}]}, {}, Hints(gain=1e-4, offset=-0.1)),
        ({"raster:scale": 1e-4, "raster:offset": 0}, {}, Hints(gain=1e-4, offset=0.0)),
        ({"bands": [{"raster:scale": 2e-4}]}, {}, Hints(gain=2e-4)),
        ({}, {"earthsearch:boa_offset_applied": True}, Hints(offset_applied=True)),
        ({}, {"s2:processing_baseline": "05.09"}, Hints(baseline="05.09")),
        ({}, {"processing:version": 4.0, "s2:boa_offset_applied": False}, Hints(offset_applied=False, baseline="4.0")),
        ({"raster:scale": "much", "bands": "x", "raster:bands": [3]}, {"datetime": "2023-01-01"}, Hints()),
    ],
)
def test_scaling_is_what_the_item_says(
    asset: dict[str, object], properties: dict[str, object], expected: Hints
) -> None:
    made = StacItem({"id": "a", "properties": properties, "assets": {"green": asset}}, "a.json", Path())  # type: ignore[dict-item]
    assert made.hints("green") == expected


def test_bands_are_found_by_what_assets_are_called() -> None:
    made = StacItem(item(), "a.json", Path())  # type: ignore[arg-type]
    assert (made.asset_of("B03"), made.asset_of("nir")) == ("green", "nir")
    with pytest.raises(ImageryError, match="expected an asset with B04, got B03, B08"):
        made.asset_of("red")
    assert (made.cloud, made.id) == (3.0, "one")


@pytest.mark.parametrize(
    "href",
    [
        "../../etc/passwd", "/etc/passwd", "file:///etc/passwd", "javascript:alert(1)", "https://example.org/a.tif",
        "//host/a.tif", "\\\\host\\a", "s3://bucket/a.tif", "", "a\nb", None, "/vsicurl/http://x/a.tif",
    ],
)  # fmt: skip
def test_references_stay_in_a_local_catalog(tmp_path: Path, href: str | None) -> None:
    made = StacItem({"id": "a", "assets": {"x": {"href": href}}}, str(tmp_path / "a.json"), tmp_path)
    with pytest.raises(ImageryError, match=r"expected (a relative|a file inside|an href)"):
        made.href("x", Access(network=True, hosts=("example.org",)))


@pytest.mark.parametrize(
    ("href", "match"),
    [
        ("https://evil.example/a.tif", "expected one of the hosts"),
        ("file:///etc/passwd", "plain http address"),
        ("javascript:alert(1)", "plain http address"),
        ("s3://bucket/a.tif", "plain http address"),
        ("http://user:secret@stac.example/a.tif", "plain http address"),
    ],
)
def test_references_of_an_api_stay_on_named_hosts(href: str, match: str) -> None:
    made = StacItem({"id": "a", "assets": {"x": {"href": href}}}, "https://stac.example/items/a")
    with pytest.raises(ImageryError, match=match):
        made.href("x", Access(network=True, private=True))
    with pytest.raises(ImageryError, match="--allow-network"):
        made.href("x")


def test_relative_references_of_an_api_are_joined() -> None:
    made = StacItem({"id": "a", "assets": {"x": {"href": "../data/a.tif"}}}, "https://stac.example/items/a")
    assert made.href("x", Access(network=True, private=True)) == "https://stac.example/data/a.tif"


def test_a_static_catalog_is_walked_once_and_bounded(tmp_path: Path) -> None:
    path = catalog(tmp_path, "one", "two")
    assert [i.id for i in read_catalog(path)] == ["one", "two"]
    with pytest.raises(ImageryError, match="at most 1 items"):
        read_catalog(path, Access(items=1))
    loop = {"type": "Catalog", "id": "c", "links": [{"rel": "child", "href": "./catalog.json"}] * 3}
    path.write_text(json.dumps(loop))
    assert read_catalog(path) == []
    path.write_text(json.dumps({"type": "Catalog", "links": [{"rel": "item", "href": "../x.json"}]}))
    with pytest.raises(ImageryError, match="expected a file inside"):
        read_catalog(path)
    path.write_text("[" * 100_000)
    with pytest.raises(ImageryError, match="expected a STAC file"):
        read_catalog(path)


def test_a_box_is_loaded_as_stored(tmp_path: Path) -> None:
    items = read_catalog(catalog(tmp_path, "one"))
    raster, hints = load(items, box(), ("B03", "B08"))
    assert hints == Hints(gain=1e-4, offset=-0.1)
    assert raster.bands == ("B03", "B08") and raster.grid.crs == "EPSG:32633" and raster.seen.all()
    t = raster.grid.transform
    assert t is not None
    row, col = round((5000000 - t.f) / 10), round((t.c - 600000) / 10)
    height, width = raster.grid.height, raster.grid.width
    np.testing.assert_array_equal(raster.data, NUMBERS[:, row : row + height, col : col + width])


def test_the_next_item_fills_where_the_first_has_no_data(tmp_path: Path) -> None:
    items = read_catalog(catalog(tmp_path, "one", "two", holes=True))
    alone, _ = load(items[:1], box(), ("B03",))
    both, _ = load(items, box(), ("B03",))
    assert 0.2 < alone.seen.mean() < 0.8 and both.seen.all()
    assert not alone.data[:, ~alone.seen].any()


def test_items_that_are_scaled_differently_are_not_mixed(tmp_path: Path) -> None:
    one, two = read_catalog(catalog(tmp_path, "one", "two"))
    other = StacItem({**two.raw, "properties": {"s2:processing_baseline": "02.14"}}, two.home, two.root)
    with pytest.raises(RadiometryError, match="got 2 ways"):
        load((one, other), box(), ("B03",))
    with pytest.raises(ImageryError, match="expected items, got none"):
        load((), box(), ("B03",))
    with pytest.raises(ImageryError, match="cut the box"):
        load((one,), box(), ("B03",), limits=Limits(pixels=100))


def test_a_broken_file_of_a_catalog_is_refused(tmp_path: Path) -> None:
    items = read_catalog(catalog(tmp_path, "one"))
    path = tmp_path / "one-B03.tif"
    path.write_bytes(path.read_bytes()[:-600])
    with pytest.raises(ImageryError, match="one-B03"):
        load(items, box(), ("B03",))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("../../etc/passwd", "etc-passwd"),
        ("B03", "B03"),
        ("%2e%2e", "2e-2e"),
        ("\0\n", "unnamed"),
        ("x" * 300, "x" * 100),
    ],
)
def test_file_names_are_safe(text: str, name: str) -> None:
    assert file_name(text) == name

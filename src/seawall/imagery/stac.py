"""Imagery from STAC catalogs: scenes found, and boxes of them loaded as stored with what says how to scale them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

import numpy as np

from seawall.errors import ImageryError, RadiometryError
from seawall.geo.grid import Grid
from seawall.geo.radiometry import Hints
from seawall.geo.raster import Limits, Raster, open_raster
from seawall.geo.sensors import resolve
from seawall.imagery.boxes import Box
from seawall.imagery.catalog import Json, StacItem, mapping
from seawall.imagery.fetch import Access, check_url


def search(
    url: str, collection: str, box: Box, start: str, end: str, access: Access, *, cloud: float = 100.0
) -> list[StacItem]:
    """Search a STAC API; the least cloudy scene comes first.

    Args:
        url: Address of the API.
        collection: Id of the collection.
        box: Where.
        start: First day, such as "2023-01-01".
        end: Last day.
        access: What may be reached, and how many pages and items.
        cloud: Most cloud cover in percent.

    Raises:
        ImageryError: The host may not be reached, or it answers without end.
    """
    from pystac_client import Client
    from pystac_client.exceptions import APIError

    own = urlsplit(url).hostname or ""
    check_url(url, access, (own,))
    found: dict[str, StacItem] = {}
    try:
        client = Client.open(url, timeout=access.timeout_s)
        asked = client.search(
            collections=[collection], bbox=box.bounds, datetime=f"{start}/{end}", limit=min(100, access.items)
        )
        for number, page in enumerate(asked.pages_as_dicts(), 1):
            before = len(found)
            for raw in page.get("features", ()):
                found.setdefault(str(raw.get("id")), StacItem(raw, _self_link(raw, url)))
            if len(found) >= access.items:
                break
            if number >= access.pages or (len(found) == before and page.get("features")):
                raise ImageryError(f"{url}: expected pages that end, got the same items again; narrow the search")
    except (APIError, OSError, ValueError) as bad:
        raise ImageryError(f"{url}: expected a STAC API, got {bad}; check the address") from bad
    fine = [item for item in found.values() if item.cloud <= cloud]
    return sorted(fine, key=lambda item: (item.cloud, item.id))[: access.items]


def load(
    items: Sequence[StacItem],
    box: Box,
    bands: Sequence[str],
    gsd_m: float = 10.0,
    access: Access = Access(),
    limits: Limits = Limits(),
) -> tuple[Raster, Hints]:
    """Load a box from items as stored; where the first has no data, the next fills in.

    Args:
        items: Scenes, the preferred one first; all must be scaled alike.
        box: Where.
        bands: Band names.
        gsd_m: Pixel size in meters, in the UTM zone of the first item.
        access: What may be reached.
        limits: What the box may ask of this machine.

    Returns:
        The raster, and what the items say about its numbers.

    Raises:
        ImageryError: A reference is not safe, a file is not whole, or the box is too big.
        RadiometryError: Items are scaled differently.
    """
    import odc.stac
    import pystac

    if not items:
        raise ImageryError(f"{box.name}: expected items, got none; widen the dates or the cloud cover")
    ids = resolve(bands)
    hints = {item.hints(item.asset_of(id_)) for item in items for id_ in ids}
    if len(hints) > 1:
        raise RadiometryError(
            f"{box.name}: expected items that are scaled alike, got {len(hints)} ways; load them apart"
        )
    _check_box(box, len(ids) * len(items), gsd_m, limits)
    safe = [pystac.Item.from_dict(_safe_item(item, ids, access)) for item in items]
    cube = odc.stac.load(
        safe, bands=list(ids), bbox=box.bounds, crs="utm", resolution=gsd_m, groupby="id", preserve_original_order=True,
        resampling="nearest", dtype="float32",
    )  # fmt: skip
    data = np.stack([cube[id_].values for id_ in ids], 1).astype(np.float32)
    holes = [cube[id_].attrs.get("nodata", 0) for id_ in ids]
    ok = np.all([np.isfinite(data[:, i]) & (data[:, i] != hole) for i, hole in enumerate(holes)], axis=0)
    out, seen = np.zeros(data.shape[1:], np.float32), np.zeros(data.shape[2:], bool)
    for one, there in zip(data, ok, strict=True):
        fill = there & ~seen
        out[:, fill] = one[:, fill]
        seen |= fill
    place = cube.odc.geobox
    code = place.crs.to_epsg()
    height, width = place.shape
    grid = Grid(int(height), int(width), place.affine, f"EPSG:{code}" if code else place.crs.to_wkt())
    return Raster(out, seen, ids, grid, "float32", None, {"ITEMS": " ".join(item.id for item in items)}), hints.pop()


def _safe_item(item: StacItem, ids: Sequence[str], access: Access) -> dict[str, object]:
    """Return a copy with nothing but the wanted assets, under band ids, at checked places."""
    assets = {}
    for id_ in ids:
        key = item.asset_of(id_)
        where = item.href(key, access)
        if item.root is not None:
            with open_raster(where):
                pass
        kept = {k: v for k, v in item.asset(key).items() if k.startswith(("proj:", "raster:", "eo:", "type", "roles"))}
        # Numbers are loaded as stored; their scale is applied once, by the radiometric contract.
        assets[id_] = kept | {"href": where}
    return {**item.raw, "assets": assets, "links": []}


def _check_box(box: Box, layers: int, gsd_m: float, limits: Limits) -> None:
    meters = 111_320.0
    height = (box.top - box.bottom) * meters / gsd_m
    width = (box.right - box.left) * meters * float(np.cos(np.radians((box.top + box.bottom) / 2))) / gsd_m
    if height * width > limits.pixels or height * width * layers * 4 > limits.bytes:
        raise ImageryError(
            f"{box.name}: expected at most {limits.pixels} pixels, got about {height:.0f}x{width:.0f} in {layers} layers; cut the box"
        )


def _self_link(raw: Mapping[str, Json], url: str) -> str:
    links = raw.get("links")
    for link in links if isinstance(links, Sequence) else ():
        said = mapping(link)
        if said.get("rel") == "self" and urlsplit(str(said.get("href"))).hostname == urlsplit(url).hostname:
            return str(said["href"])
    return url

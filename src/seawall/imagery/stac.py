"""Imagery from STAC catalogs: search for items, and loading of a bounding box as stored with its scaling metadata."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import numpy as np

from seawall.errors import ImageryError, RadiometryError
from seawall.geo.grid import Grid
from seawall.geo.radiometry import Hints
from seawall.geo.raster import Limits, Raster, open_raster
from seawall.geo.sensors import are_sentinel_bands, resolve_bands
from seawall.imagery.bounding_boxes import BoundingBox
from seawall.imagery.download import Access, check_url, fetch

MAX_JSON_BYTES = 16 * 2**20
MAX_DEPTH = 12
"""Largest number of nested catalogs that are followed."""

Json = None | bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"]


@dataclass(frozen=True)
class StacItem:
    """One scene of a catalog.

    Args:
        raw: The item's JSON object.
        home: Address or local path of the item's JSON; relative references start there.
        root: Local folder that must contain its files; None for an item of an API.
    """

    raw: Mapping[str, Json]
    home: str
    root: Path | None = None

    @property
    def id(self) -> str:
        """Its id."""
        return str(self.raw.get("id", ""))

    @property
    def properties(self) -> Mapping[str, Json]:
        """Its properties."""
        return as_mapping(self.raw.get("properties"))

    @property
    def cloud(self) -> float:
        """Cloud cover in percent; 100 if unknown."""
        value = self.properties.get("eo:cloud_cover")
        return float(value) if isinstance(value, int | float) else 100.0

    def asset_of(self, band: str) -> str:
        """Return the key of the asset that holds a band.

        Raises:
            ImageryError: No asset has this band alone.
        """
        wanted = resolve_bands((band,))[0]
        found: dict[str, str] = {}
        for key, asset in as_mapping(self.raw.get("assets")).items():
            for name in _band_names(key, as_mapping(asset)):
                if are_sentinel_bands((name,)):
                    found.setdefault(resolve_bands((name,))[0], key)
                    break
        if wanted not in found:
            raise ImageryError(
                f"{self.id}: expected an asset with {wanted}, got {', '.join(sorted(found)) or 'none'}; choose other bands"
            )
        return found[wanted]

    def hints(self, asset: str) -> Hints:
        """Return the item's metadata on the stored numbers of an asset."""
        fields = self.asset(asset)
        gain, offset = _scaling(fields)
        applied = self._property("earthsearch:boa_offset_applied", "s2:boa_offset_applied", "boa_offset_applied")
        baseline = self._property("s2:processing_baseline", "processing:version", "processing_baseline")
        return Hints(
            gain=gain,
            offset=offset,
            offset_applied=applied if isinstance(applied, bool) else None,
            baseline=str(baseline) if baseline is not None else None,
        )

    def href(self, asset: str, access: Access = Access()) -> str:
        """Return the checked path or address of an asset.

        Raises:
            ImageryError: The reference leads out of the catalog: another scheme or host, an absolute path, "..".
        """
        text = self.asset(asset).get("href")
        if not isinstance(text, str) or not text or any(ord(c) < 32 for c in text):
            raise ImageryError(f"{self.id}.{asset}: expected an href, got {text!r}; refuse the item")
        if self.root is not None:
            return str(_resolve_href(self.root, Path(self.home).parent, text, f"{self.id}.{asset}"))
        own = urlsplit(self.home).hostname or ""
        return check_url(urljoin(self.home, text), access, tuple(dict.fromkeys((own, *access.hosts))))

    def download(self, asset: str, folder: Path, access: Access) -> Path:
        """Download an asset and return its path; a local asset is not copied.

        Raises:
            ImageryError: As `href` and `seawall.imagery.download.fetch`.
        """
        where = self.href(asset, access)
        if self.root is not None:
            return Path(where)
        suffix = re.sub(r"[^a-z0-9.]", "", Path(urlsplit(where).path).suffix.lower())[:8] or ".tif"
        path = folder / f"{file_name(self.id)}_{file_name(asset)}{suffix}"
        checksum = self.asset(asset).get("file:checksum")
        fetch(where, path, access, checksum=checksum if isinstance(checksum, str) else None)
        return path

    def asset(self, key: str) -> Mapping[str, Json]:
        """Return an asset.

        Raises:
            ImageryError: The item has no such asset.
        """
        assets = as_mapping(self.raw.get("assets"))
        if key not in assets:
            raise ImageryError(f"{self.id}: expected asset {key!r}, got {', '.join(assets) or 'none'}; choose another")
        return as_mapping(assets[key])

    def _property(self, *names: str) -> Json:
        return next((self.properties[name] for name in names if name in self.properties), None)


def search_items(
    url: str, collection: str, box: BoundingBox, start: str, end: str, access: Access, *, cloud: float = 100.0
) -> list[StacItem]:
    """Search a STAC API; the result is sorted by cloud cover.

    Args:
        url: Address of the API.
        collection: Id of the collection.
        box: Bounding box.
        start: First day, such as "2023-01-01".
        end: Last day.
        access: Limits of network access, pages and items.
        cloud: Largest cloud cover in percent.

    Raises:
        ImageryError: The host is not allowed or does not answer as a STAC API, or the pages do not end.
    """
    from pystac_client import Client
    from pystac_client.exceptions import APIError

    own = urlsplit(url).hostname or ""
    check_url(url, access, (own,))
    found: dict[str, StacItem] = {}
    try:
        client = Client.open(url, timeout=access.timeout_s)
        search = client.search(
            collections=[collection], bbox=box.bounds, datetime=f"{start}/{end}", limit=min(100, access.items)
        )
        for number, page in enumerate(search.pages_as_dicts(), 1):
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
    box: BoundingBox,
    bands: Sequence[str],
    gsd_m: float = 10.0,
    access: Access = Access(),
    limits: Limits = Limits(),
) -> tuple[Raster, Hints]:
    """Load a bounding box as stored; pixels without data in an item are taken from the next item.

    Args:
        items: Scenes in order of preference; all must have the same scale.
        box: Bounding box.
        bands: Band names.
        gsd_m: Pixel size in meters, in the UTM zone of the first item.
        access: Limits of network access.
        limits: Largest raster that is loaded.

    Returns:
        The raster, and the items' metadata on its numbers.

    Raises:
        ImageryError: A reference is not safe, a file is damaged, or the box is too large.
        RadiometryError: Items are scaled differently.
    """
    import odc.stac
    import pystac

    if not items:
        raise ImageryError(f"{box.name}: expected items, got none; widen the dates or the cloud cover")
    ids = resolve_bands(bands)
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
    """Return a copy of the item with only the assets of these bands, keyed by band id, with checked references."""
    assets = {}
    for id_ in ids:
        key = item.asset_of(id_)
        place = item.href(key, access)
        if item.root is not None:
            with open_raster(place):
                pass
        kept = {k: v for k, v in item.asset(key).items() if k.startswith(("proj:", "raster:", "eo:", "type", "roles"))}
        # Numbers are loaded as stored; seawall.geo.radiometry applies the scale.
        assets[id_] = kept | {"href": place}
    return {**item.raw, "assets": assets, "links": []}


def _check_box(box: BoundingBox, layers: int, gsd_m: float, limits: Limits) -> None:
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
        target = as_mapping(link)
        if target.get("rel") == "self" and urlsplit(str(target.get("href"))).hostname == urlsplit(url).hostname:
            return str(target["href"])
    return url


def file_name(text: str) -> str:
    """Return a text with the characters removed that are not safe in a file name.

    Example:
        >>> file_name("../B03 (10 m)")
        'B03-10-m'
    """
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-.")[:100] or "unnamed"


def read_catalog(path: Path, access: Access = Access()) -> list[StacItem]:
    """Read the items of a local static catalog: a catalog, collection, item or item collection file.

    Args:
        path: The JSON file; all files it links to must be in its folder.
        access: Largest number of items.

    Raises:
        ImageryError: A link leaves the folder, a file is not JSON, or there are too many items.
    """
    root = path.parent.resolve()
    items = list(islice(_walk(path.resolve(), root, set(), 0), access.items + 1))
    if len(items) > access.items:
        raise ImageryError(f"{path}: expected at most {access.items} items, got more; raise Access.items")
    return items


def _scaling(asset: Mapping[str, Json]) -> tuple[float | None, float | None]:
    """Return gain and offset by the fields of STAC 1.0 (raster:bands) or 1.1 (bands, raster:scale)."""
    places: list[Mapping[str, Json]] = [asset]
    for name in ("raster:bands", "bands"):
        listed = asset.get(name)
        if isinstance(listed, Sequence) and not isinstance(listed, str):
            places += [as_mapping(band) for band in listed[:1]]
    values: list[float | None] = []
    for key in ("scale", "offset"):
        found = [p[k] for p in places for k in (f"raster:{key}", key) if isinstance(p.get(k), int | float)]
        values.append(float(found[0]) if found else None)  # type: ignore[arg-type]
    return values[0], values[1]


def _band_names(key: str, asset: Mapping[str, Json]) -> Iterator[str]:
    """Yield the band names of an asset with one band, the preferred one first."""
    for name in ("eo:bands", "bands"):
        listed = asset.get(name)
        if isinstance(listed, Sequence) and not isinstance(listed, str):
            if len(listed) > 1:
                return
            for band in listed:
                fields = as_mapping(band)
                yield from (str(fields[k]) for k in ("name", "eo:common_name", "common_name") if k in fields)
    yield key.removesuffix("-jp2")


def _walk(path: Path, root: Path, seen: set[Path], depth: int) -> Iterator[StacItem]:
    if path in seen or depth > MAX_DEPTH:
        return
    seen.add(path)
    raw = _read_json(path)
    if raw.get("type") == "FeatureCollection":
        features = raw.get("features")
        for item in features if isinstance(features, Sequence) else ():
            yield StacItem(as_mapping(item), str(path), root)
        return
    if raw.get("type") == "Feature":
        yield StacItem(raw, str(path), root)
        return
    links = raw.get("links")
    for link in links if isinstance(links, Sequence) else ():
        target = as_mapping(link)
        if target.get("rel") in ("item", "child"):
            yield from _walk(
                _resolve_href(root, path.parent, str(target.get("href", "")), str(path)), root, seen, depth + 1
            )


def _read_json(path: Path) -> Mapping[str, Json]:
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ImageryError(f"{path}: expected at most {MAX_JSON_BYTES} bytes of JSON, got more; split the catalog")
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as bad:
        raise ImageryError(f"{path}: expected a STAC file, got {bad}; fetch the catalog again") from bad
    if not isinstance(raw, dict):
        raise ImageryError(f"{path}: expected a STAC object, got {type(raw).__name__}; fetch the catalog again")
    return raw


def _resolve_href(root: Path, folder: Path, href: str, where: str) -> Path:
    parts = urlsplit(href)
    if parts.scheme or parts.netloc or href.startswith(("/", "\\")) or not href:
        raise ImageryError(f"{where}: expected a relative reference, got {href!r}; refuse the catalog")
    path = (folder / href).resolve()
    if not path.is_relative_to(root):
        raise ImageryError(f"{where}: expected a file inside {root}, got {href!r}; refuse the catalog")
    return path


def as_mapping(value: Json) -> Mapping[str, Json]:
    """Return the value if it is a JSON object, else an empty one."""
    return value if isinstance(value, Mapping) else {}

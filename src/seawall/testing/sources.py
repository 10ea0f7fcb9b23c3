"""What every source of chips must keep, on the smallest folder of its layout."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from affine import Affine
from numpy.typing import NDArray

from seawall.data import index
from seawall.data.curate import CurateReport, curate_chips
from seawall.data.preparation import read_label
from seawall.data.raw_chips import ImageSource
from seawall.data.source_detection import detect_source, source_fields, source_layout
from seawall.geo.cog import write_cog
from seawall.geo.raster import Grid
from seawall.registry import Entry, build, entries

EXAMPLE_SIDE = 32  # pixels
EXAMPLE_BANDS = {"image": ("B02", "B03", "B04", "B08"), "radar": ("VV", "VH"), "label": ("label",)}


def check_claims_its_own_layout_alone(entry: Entry) -> None:
    """Detection finds the source from its own example; no source of another layout claims it, but for a general one."""
    with _example(entry) as place:
        assert source_layout(entry).claims(place), "the source does not claim its own example"
        assert detect_source(place) == entry.name, f"detected as {detect_source(place)}"
        assert not source_layout(entry).claims(place / "nothing"), "the source claims what does not exist"
    claimed = []
    for other in entries("source"):
        if other.name != entry.name and source_layout(other).example:
            with _example(other) as place:
                claimed.append(source_layout(entry).claims(place))
    assert any(claimed) == ("general" in entry.traits), "general: declared and not true, or true and not declared"


def check_ids_are_those_of_the_content(entry: Entry) -> None:
    """Ids are safe and differ in more than case; ids, groups and digests are the same at each call and in another place."""
    with _example(entry) as place, TemporaryDirectory() as other:
        items, rejected = _source(entry, place).items(EXAMPLE_SIDE)
        assert len(items) >= 2 and not rejected, f"expected 2 chips and more, got {len(items)}, rejected {rejected}"
        names = [index.check_id(item.id) for item in items]
        assert len({name.lower() for name in names}) == len(names), f"expected each id once, got {names}"
        assert all(item.group for item in items), "a group is empty"
        elsewhere = Path(other) / "copy" if place.exists() else place
        if place.exists():
            shutil.copytree(place, elsewhere)
        for again in (_source(entry, place), _source(entry, elsewhere)):
            found, _ = again.items(EXAMPLE_SIDE)
            assert [(i.id, i.group, i.digest()) for i in found] == [(i.id, i.group, i.digest()) for i in items], (
                "ids, groups, digests or their order differ between calls or places"
            )


def check_pixels_are_finite_and_labels_are_classes(entry: Entry) -> None:
    """What is seen is finite and of the stated shape, and the label map makes classes of all labels."""
    with _example(entry) as place:
        source = _source(entry, place)
        classes = source.classes or ("land", "water")
        for item in source.items(EXAMPLE_SIDE)[0]:
            chip = item.read()
            assert chip.data.shape == (len(chip.bands), *item.shape) and chip.seen.shape == item.shape
            assert chip.seen.any() and np.isfinite(chip.data[:, chip.seen]).all(), f"{item.id}: not finite where seen"
            assert chip.label is not None, f"{item.id}: no label"
            label = read_label(chip.label, len(classes), source.label_map, chip.label_nodata)
            assert label.shape == item.shape and set(np.unique(label)) <= {*range(len(classes)), 255}
            assert (label != 255).any(), f"{item.id}: no label counts"


def check_chips_are_no_larger_than_asked(entry: Entry) -> None:
    """Larger images are cut; the parts have ids of their own and the group of the whole."""
    with _example(entry) as place:
        source = _source(entry, place)
        groups = {item.group for item in source.items(EXAMPLE_SIDE)[0]}
        parts, _ = source.items(EXAMPLE_SIDE // 2)
        assert parts and all(max(item.shape) <= EXAMPLE_SIDE // 2 for item in parts), "a chip is larger than asked for"
        assert {item.group for item in parts} == groups, "a part has another group than the whole"
        assert len({item.id for item in parts}) == len(parts), "two parts have one id"
        assert all(item.read().data.shape[1:] == item.shape for item in parts), "a part has another shape than stated"


def check_one_bad_file_costs_one_chip(entry: Entry) -> None:
    """A file that is missing, empty, or a link out of the folder takes its own chip away and no other.

    An image that cannot be read and a label that is not there fail with a reason; an image that is not there may as well
    be no chip at all.
    """
    example = source_layout(entry).example
    beside = not {"image", "radar"}.isdisjoint(example.values())  # else a label that is gone leaves no trace
    for path, content in example.items():
        if content not in EXAMPLE_BANDS:
            continue
        for harm in (_delete, _empty, _move_out):
            with _example(entry) as place:
                all_ids = {item.id for item in _source(entry, place).items(EXAMPLE_SIDE)[0]}
                harm(place, path)
                report = _curated(entry, place)
                lost = all_ids - set(report.made)
                assert len(lost) == 1, f"{path} {harm.__name__}: expected one chip less, lost {sorted(lost)}"
                if harm is not _delete or (content == "label" and beside):
                    assert {name for name, _ in report.failed} == lost and all(why for _, why in report.failed), (
                        f"{path} {harm.__name__}: expected a reason for {sorted(lost)}, got {report.failed}"
                    )


def check_nothing_is_written_to_the_source(entry: Entry) -> None:
    """A whole curation leaves every file of the source as it was and adds none."""
    with _example(entry) as place:
        before = _contents(place)
        report = _curated(entry, place)
        assert len(report.made) >= 2 and not report.failed, f"failed: {report.failed}"
        assert _contents(place) == before, "the source was written to"


@contextmanager
def _example(entry: Entry) -> Iterator[Path]:
    """Yield the place of the example of a source; where it is no folder, the first field of `smoke`."""
    files = source_layout(entry).example
    if not files:
        yield Path(str(entry.smoke[source_fields(entry.name)[0]]))
        return
    with TemporaryDirectory() as folder:
        place = Path(folder) / "example"
        for seed, (name, content) in enumerate(files.items()):
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            if content in EXAMPLE_BANDS:
                _write_example_raster(place / name, content, seed)
            else:
                (place / name).write_text(content, encoding="utf-8")
        yield place


def _write_example_raster(path: Path, content: str, seed: int) -> None:
    """Write land above and water below, on the same grid for each file."""
    water = np.zeros((EXAMPLE_SIDE, EXAMPLE_SIDE), bool)
    water[EXAMPLE_SIDE // 2 :] = True
    noise = np.random.default_rng(seed).random((len(EXAMPLE_BANDS[content]), *water.shape), np.float32)
    data: Mapping[str, NDArray[np.generic]] = {
        "image": (np.where(water, 200, 2500) + 500 * noise).astype(np.uint16),
        "radar": (np.where(water, -20, -10) + noise).astype(np.float32),
        "label": water[None].astype(np.uint8),
    }
    grid = Grid(*water.shape, Affine(10, 0, 500000, 0, -10, 4000000), "EPSG:32631")
    write_cog(path, data[content], grid, bands=EXAMPLE_BANDS[content])


def _source(entry: Entry, place: Path) -> ImageSource:
    source = build("source", entry.name, {**entry.smoke, source_fields(entry.name)[0]: str(place)})
    assert isinstance(source, ImageSource), f"{entry.name}: expected a source of images, got {type(source).__name__}"
    return source


def _curated(entry: Entry, place: Path) -> CurateReport:
    with TemporaryDirectory() as out:
        return curate_chips(_source(entry, place), out, chip=EXAMPLE_SIDE)


def _delete(place: Path, name: str) -> None:
    (place / name).unlink()


def _empty(place: Path, name: str) -> None:
    (place / name).write_bytes(b"")


def _move_out(place: Path, name: str) -> None:
    outside = (place / name).rename(place.parent / "outside.tif")
    (place / name).symlink_to(outside)


def _contents(place: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(place.rglob("*")) if path.is_file()}


CHECKS = [value for name, value in list(globals().items()) if name.startswith("check_")]

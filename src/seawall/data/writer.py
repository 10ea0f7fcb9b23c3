"""Writes a chip folder: a chip is complete when its line is in the journal; the index is written last."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from seawall.data.chip_format import IGNORE, Encoded, encode_image, encode_label
from seawall.data.chips import ChipFolder
from seawall.data.index import (
    INDEX_NAME,
    ChipHeader,
    ChipRow,
    check_id,
    dump_header,
    dump_row,
    load_row,
    read_index,
    write_index,
)
from seawall.errors import DataError
from seawall.geo.raster import Grid
from seawall.io import file_sha256, write_atomic
from seawall.split_record import SplitSettings

JOURNAL_NAME = "journal.jsonl"


class ChipWriter:
    """Writes chips into a folder; a killed writer loses at most the chip that it was writing.

    Args:
        root: The folder; created if it does not exist.
        header: Bands, unit and classes of all chips. A folder made with another header is refused.

    Raises:
        DataError: The folder has chips of another header.

    Example:
        >>> import tempfile
        >>> header = ChipHeader(("B03", "B08"), "reflectance", ("land", "water"), 10.0)
        >>> writer = ChipWriter(Path(tempfile.mkdtemp()), header)
        >>> row = writer.write("a", "river", np.full((2, 4, 4), 0.1, np.float32), np.ones((4, 4), np.uint8))
        >>> folder = writer.finish()
        >>> folder.ids, folder.read("a").label.sum().item()
        (('a',), 16)
    """

    def __init__(self, root: Path | str, header: ChipHeader) -> None:
        self.root = Path(root)
        self.header = header
        self.root.mkdir(parents=True, exist_ok=True)
        self.rows: dict[str, ChipRow] = {}
        self._recover()

    def write(
        self,
        id_: str,
        group: str,
        image: NDArray[np.float32],
        label: NDArray[np.uint8],
        *,
        seen: NDArray[np.bool_] | None = None,
        grid: Grid | None = None,
        gain: float | None = None,
        source: str = "",
        source_sha256: str = "",
        notes: Sequence[str] = (),
        flags: Sequence[str] = (),
    ) -> ChipRow:
        """Write one chip and return its row.

        Args:
            id_: Stable id: letters, digits and `._@+=-`.
            group: Event or location.
            image: (C, H, W) float32 in data units.
            label: (H, W): class values, 255 where it does not count.
            seen: (H, W), or (C, H, W) of several sources; all pixels if None.
            grid: Where it is.
            gain: Step of the digital numbers that the image was made from, if it was.
            source: Name of what it was made from.
            source_sha256: Digest of the source and settings.
            notes: Remarks for people.
            flags: Short marks that results carry.

        Raises:
            DataError: The id cannot be a file name, shapes disagree, or a label value is no class.
        """
        self._check_case(check_id(id_))
        seen = np.ones(image.shape[1:], bool) if seen is None else seen
        any_seen = seen.any(0) if seen.ndim == 3 else seen
        marks = check_label(label, image.shape[1:], len(self.header.classes))
        marks = np.where(any_seen, marks, np.uint8(IGNORE)).astype(np.uint8)
        grid = grid or Grid(*image.shape[1:])
        pixels = encode_image(image, seen, grid, self.header.bands, gain)
        labels = encode_label(marks, grid)
        counts = np.bincount(marks[marks != IGNORE].ravel(), minlength=len(self.header.classes))
        row = ChipRow(
            id=id_, group=group, image=f"images/{id_}.tif", label=f"labels/{id_}.tif", height=image.shape[1], width=image.shape[2],
            sha256=self._put(f"images/{id_}.tif", pixels), label_sha256=self._put(f"labels/{id_}.tif", labels),
            dtype=pixels.dtype, gain=pixels.gain, image_at=pixels.at, label_at=labels.at,
            seen_share=float(any_seen.mean()), valid_share=float((marks != IGNORE).mean()),
            class_counts=tuple(int(n) for n in counts), source=source, source_sha256=source_sha256,
            transform=tuple(float(v) for v in grid.transform[:6]) if grid.transform else (), crs=grid.crs,
            notes=tuple(notes), flags=tuple(flags),
        )  # fmt: skip
        self._log(dump_row(row))
        self.rows[id_] = row
        return row

    def relabel(
        self,
        folder: ChipFolder,
        id_: str,
        label: NDArray[np.uint8],
        notes: Sequence[str] = (),
        *,
        source_sha256: str | None = None,
    ) -> ChipRow:
        """Write a chip of another folder with another label; the image file is copied as it is.

        Args:
            folder: Where the chip is.
            id_: Its id.
            label: (H, W) class values, 255 where it does not count; unseen pixels never count.
            notes: Description of the change to the label.
            source_sha256: Digest of the source and of the change, for `whole`; that of the chip if None.

        Raises:
            DataError: The image file is not what its row says, or a label value is no class.
        """
        row, seen = folder.row(check_id(id_)), folder.read(id_).seen
        data = (folder.root / row.image).read_bytes()
        marks = check_label(label, (row.height, row.width), len(self.header.classes))
        marks = np.where(seen, marks, np.uint8(IGNORE)).astype(np.uint8)
        labels = encode_label(marks, row.grid)
        counts = np.bincount(marks[marks != IGNORE].ravel(), minlength=len(self.header.classes))
        image_name, label_name = f"images/{row.id}.tif", f"labels/{row.id}.tif"
        write_atomic(self.root / image_name, data)
        new = replace(
            row, image=image_name, label=label_name, label_sha256=self._put(label_name, labels), label_at=labels.at,
            valid_share=float((marks != IGNORE).mean()), class_counts=tuple(int(n) for n in counts),
            notes=(*row.notes, *notes), source_sha256=row.source_sha256 if source_sha256 is None else source_sha256,
            split_counts=row.split_counts or row.class_counts,
        )  # fmt: skip
        self._log(dump_row(new))
        self.rows[row.id] = new
        return new

    def is_complete(self, id_: str, source_sha256: str) -> bool:
        """Return whether a chip with this source digest exists and its files have the checksums of its row."""
        row = self.rows.get(id_)
        if row is None or not source_sha256 or row.source_sha256 != source_sha256:
            return False
        for path, digest in ((row.image, row.sha256), (row.label, row.label_sha256)):
            try:
                if file_sha256(self.root / path) != digest:
                    return False
            except OSError:
                return False
        return True

    def finish(self, ids: Sequence[str] | None = None) -> ChipFolder:
        """Write the index, drop the journal and open the folder.

        Args:
            ids: The chips to keep; all that were written or recovered if None.
        """
        rows = list(self.rows.values()) if ids is None else [self.rows[id_] for id_ in ids]
        write_index(self.root, self.header, rows)
        (self.root / JOURNAL_NAME).unlink(missing_ok=True)
        return ChipFolder.open(self.root)

    def _put(self, name: str, file: Encoded) -> str:
        write_atomic(self.root / name, file.data)
        return hashlib.sha256(file.data).hexdigest()

    def _check_case(self, id_: str) -> None:
        # Ids that differ in case only are one file on some file systems.
        clash = next((known for known in self.rows if known != id_ and known.lower() == id_.lower()), None)
        if clash is not None:
            raise DataError(f"chip: expected ids that differ in more than case, got {clash!r} and {id_!r}; rename one")

    def _log(self, plain: Mapping[str, object]) -> None:
        path = self.root / JOURNAL_NAME
        new = not path.exists()
        with path.open("a", encoding="utf-8") as file:
            if new:
                file.write(json.dumps({"header": dump_header(self.header)}, sort_keys=True) + "\n")
            file.write(json.dumps(plain, sort_keys=True) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _recover(self) -> None:
        if (self.root / INDEX_NAME).exists():
            header, rows = read_index(self.root)
            self._same(dump_header(header), INDEX_NAME)
            self.rows |= {row.id: row for row in rows}
        path = self.root / JOURNAL_NAME
        if not path.exists():
            return
        raw = path.read_bytes()
        whole = raw[: raw.rfind(b"\n") + 1]
        if not whole:
            path.unlink()
            return
        if whole != raw:
            with path.open("rb+") as file:
                file.truncate(len(whole))
        lines = [json.loads(line) for line in whole.splitlines()]
        self._same(lines[0].get("header"), JOURNAL_NAME)
        for number, plain in enumerate(lines[1:], 2):
            row = load_row(plain, f"{path}:{number}")
            self.rows[row.id] = row

    def _same(self, other: object, name: str) -> None:
        mine = json.loads(json.dumps(dump_header(self.header)))
        theirs = json.loads(json.dumps(other))
        if mine == theirs:
            return
        old = theirs if isinstance(theirs, dict) else {}
        key = next((k for k in (*mine, *old) if mine.get(k) != old.get(k)), "header")
        want, got = (_header_text(side.get(key)) for side in (mine, old))
        raise DataError(
            f"{self.root / name}: expected {key} {want}, got {got} from an earlier run; choose another folder or delete this one"
        )


def _header_text(value: object) -> str:
    """Return a header's value for a message; a split by its settings, because a record names every chip."""
    if isinstance(value, dict) and "settings" in value:
        return "no settings" if value["settings"] is None else str(SplitSettings(**value["settings"]))
    return str(value)


def check_label(label: NDArray[np.generic], shape: tuple[int, ...], classes: int) -> NDArray[np.uint8]:
    """Return a label as uint8 if it has the right shape and only class values or 255.

    Raises:
        DataError: The shape differs, or a value is no class.
    """
    if tuple(label.shape) != tuple(shape):
        raise DataError(
            f"label: expected {shape[0]}x{shape[1]} pixels, got shape {label.shape}; align it with the image"
        )
    values = np.unique(label)
    unknown = [v.item() for v in values if v != IGNORE and not (0 <= v < classes and v == int(v))]
    if unknown:
        some = ", ".join(f"{value:g}" for value in unknown[:5])
        raise DataError(
            f"label: expected values 0 to {classes - 1} or {IGNORE}, got {some}; say what they mean in the label map"
        )
    return label.astype(np.uint8)

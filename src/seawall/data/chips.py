"""A chip folder: GeoTIFF images and labels, and an index with bands, unit, groups and checksums."""

from __future__ import annotations

import hashlib
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from seawall.bands import channels_of
from seawall.data.chip_format import IGNORE, decode_image, map_pixels
from seawall.data.index import ChipHeader, ChipRow, read_index
from seawall.errors import DataError, did_you_mean
from seawall.geo.raster import Grid
from seawall.io import file_sha256, is_inside
from seawall.types import Units, unit_of_channels

MAX_MAPPED_BYTES = 1024 * 2**20
MAX_MAPPED_CHIPS = 256
"""Limits of the mapped chips kept open: mapped bytes count as resident memory, and each map holds a file handle."""


@dataclass(frozen=True)
class Chip:
    """One chip in memory.

    Args:
        id: Stable id.
        group: Event or location.
        image: (C, H, W) float32 in data units; an unseen pixel holds the fill of its band's unit (`FILL`).
        label: (H, W) int64, 0 where not valid.
        seen: (H, W) bool: a sensor has data there.
        valid: (H, W) bool: there is a label that counts.
        grid: Where it is.
        seen_bands: (C, H, W) bool: where each band has data; None where all bands are of one source.
    """

    id: str
    group: str
    image: NDArray[np.float32]
    label: NDArray[np.int64]
    seen: NDArray[np.bool_]
    valid: NDArray[np.bool_]
    grid: Grid
    seen_bands: NDArray[np.bool_] | None = None


StoredPixels = tuple[NDArray[np.int16 | np.float32], NDArray[np.uint8]]
"""Memory-mapped pixels of a chip as stored: image (C, H, W) and label (H, W), both read-only."""


class ChipFolder:
    """A folder of chips, opened for reading; it can be shared by threads and sent to other processes.

    Args:
        root: The folder.
        header: Bands, unit and classes of all chips.
        rows: The chips, sorted by id.
        channels: Channels of the files that are its bands, for a view of some bands; None for all.
        stored_bands: Bands of the files, for a view.
    """

    def __init__(
        self,
        root: Path,
        header: ChipHeader,
        rows: Sequence[ChipRow],
        channels: Sequence[int] | None = None,
        stored_bands: int | None = None,
    ) -> None:
        self.root = root
        self.header = header
        self.rows = tuple(rows)
        self._channels = None if channels is None else list(channels)
        self._stored_bands = len(header.bands) if stored_bands is None else stored_bands
        self._rows = {row.id: row for row in self.rows}
        self._maps: OrderedDict[str, StoredPixels] = OrderedDict()
        self._bytes = 0
        self._checked: set[str] = set()
        self._lock = threading.Lock()

    @staticmethod
    def open(path: Path | str) -> ChipFolder:
        """Open a chip folder.

        Raises:
            DataError: There is no index, or it breaks the contract.
        """
        root = Path(path)
        header, rows = read_index(root)
        return ChipFolder(root, header, rows)

    def __reduce__(self) -> tuple[object, ...]:
        return ChipFolder, (self.root, self.header, self.rows, self._channels, self._stored_bands)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def bands(self) -> tuple[str, ...]:
        """Canonical band ids in channel order."""
        return self.header.bands

    @property
    def unit(self) -> Units:
        """Unit of the images, or one per band where sources differ."""
        return self.header.unit

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the label values."""
        return self.header.classes

    @property
    def gsd_m(self) -> float:
        """Ground sampling distance in meters."""
        return self.header.gsd_m

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of all chips, sorted."""
        return tuple(row.id for row in self.rows)

    def with_bands(self, names: Sequence[str]) -> ChipFolder:
        """Return the same chips as a model of some bands gets them: a pixel is seen where any of these bands is.

        Args:
            names: Bands in the order wanted; the name of a source stands for all of its bands. Empty for all bands.

        Raises:
            UsageError: There is no such band.
        """
        at = channels_of(names, self.bands, f"{self.root}: inputs") if names else tuple(range(len(self.bands)))
        bands = tuple(self.bands[channel] for channel in at)
        if bands == self.bands:
            return self
        header = replace(self.header, bands=bands, unit=unit_of_channels(self.unit, at))
        channels = list(at) if self._channels is None else [self._channels[channel] for channel in at]
        return ChipFolder(self.root, header, self.rows, channels, self._stored_bands)

    def as_seen_by(self, bands: Sequence[str]) -> ChipFolder:
        """Return the view with the bands of a model, or this folder where it lacks one of them."""
        return self.with_bands(bands) if set(bands) <= set(self.bands) else self

    def groups(self) -> dict[str, tuple[str, ...]]:
        """Return the chip ids of each group, both sorted."""
        found: dict[str, list[str]] = {}
        for row in self.rows:
            found.setdefault(row.group, []).append(row.id)
        return {group: tuple(found[group]) for group in sorted(found)}

    def flags(self) -> dict[str, int]:
        """Return the flags that chips carry, each with the number of chips that do, sorted."""
        return dict(sorted(Counter(flag for row in self.rows for flag in row.flags).items()))

    def row(self, id_: str) -> ChipRow:
        """Return the index row of a chip.

        Raises:
            DataError: There is no such chip.
        """
        if id_ not in self._rows:
            hint = did_you_mean(id_, self._rows)
            hint = hint if len(hint) < 200 else "see the ids in the index"
            raise DataError(f"{self.root}: expected an id of the index, got {id_!r}; {hint}")
        return self._rows[id_]

    def read(self, id_: str) -> Chip:
        """Read a whole chip.

        Raises:
            DataError: The files are missing, truncated or not what the index says.
        """
        row = self.row(id_)
        stored, marks = self.stored(id_)
        image = np.empty((len(self.bands), *marks.shape), np.float32)
        known = self.decode(row, stored, image)
        seen = np.asarray(known.any(0))
        valid = seen & (marks != IGNORE)
        label = np.where(valid, marks, 0).astype(np.int64)
        return Chip(id_, row.group, image, label, seen, valid, row.grid, self.bandwise(known))

    def decode(
        self, row: ChipRow, stored: NDArray[np.int16 | np.float32], out: NDArray[np.float32]
    ) -> NDArray[np.bool_]:
        """Fill `out` (C, H, W) with the bands of stored pixels, in data units, and return where each source is seen (S, H, W)."""
        chosen = stored if self._channels is None else stored[self._channels]
        return decode_image(chosen, row.gain, self.unit, out, tuple(self.header.sources.values()))

    def bandwise(self, known: NDArray[np.bool_]) -> NDArray[np.bool_] | None:
        """Return where each band is seen (C, H, W), from where each source is (S, H, W); None where there is one source."""
        if len(known) == 1:
            return None
        places = {channel: at for at, own in enumerate(self.header.sources.values()) for channel in own}
        return np.asarray(known[[places[channel] for channel in range(len(self.bands))]])

    def stored(self, id_: str) -> StoredPixels:
        """Return the mapped pixels of a chip; its checksums are compared at the first access.

        Raises:
            DataError: The files are missing, truncated or not what the index says.
        """
        with self._lock:
            if id_ in self._maps:
                self._maps.move_to_end(id_)
                return self._maps[id_]
        row = self.row(id_)
        image_path, label_path = self._inside(row.image), self._inside(row.label)
        if id_ not in self._checked:
            _check_sha256(image_path, row.sha256)
            _check_sha256(label_path, row.label_sha256)
        shape = (self._stored_bands, row.height, row.width)
        image = map_pixels(image_path, row.image_at, row.dtype, shape)
        label = map_pixels(label_path, row.label_at, "uint8", shape[1:])
        found: StoredPixels = (image, label)  # type: ignore[assignment]
        with self._lock:
            self._checked.add(id_)
            if id_ not in self._maps:
                self._maps[id_] = found
                self._bytes += image.nbytes + label.nbytes
            while len(self._maps) > MAX_MAPPED_CHIPS or (self._bytes > MAX_MAPPED_BYTES and len(self._maps) > 1):
                self._bytes -= sum(array.nbytes for array in self._maps.popitem(last=False)[1])
        return found

    def mean_std(self, ids: Iterable[str]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return mean and standard deviation of each band over the seen pixels of these chips.

        Raises:
            DataError: No pixel of a source of these chips is seen.
        """
        sources = [list(channels) for channels in self.header.sources.values()]
        counts, mean, spread = [0] * len(sources), np.zeros(len(self.bands)), np.zeros(len(self.bands))
        for id_ in ids:
            chip = self.read(id_)
            for at, channels in enumerate(sources):
                seen = chip.seen if chip.seen_bands is None else chip.seen_bands[channels[0]]
                values = chip.image[channels][:, seen].astype(np.float64)
                n, count = values.shape[1], counts[at]
                if not n:
                    continue
                # Merging by Chan et al. 1979: sums of squares of reflectances near a constant would cancel.
                own = values.mean(1)
                gap = own - mean[channels]
                spread[channels] += ((values - own[:, None]) ** 2).sum(1) + gap**2 * count * n / (count + n)
                mean[channels] += gap * n / (count + n)
                counts[at] += n
        for name, count in zip(self.header.sources, counts, strict=True):
            if not count:
                of = f" of {name}" if name else ""
                raise DataError(
                    f"{self.root}: expected seen pixels{of} in the chosen chips, got none; choose other chips"
                )
        pixels = np.ones(len(self.bands))
        for count, channels in zip(counts, sources, strict=True):
            pixels[channels] = count
        return mean, np.sqrt(spread / pixels)

    def check(self) -> list[tuple[str, str]]:
        """Compare every file with the index; return (id, what is wrong) for the chips that fail."""
        bad = []
        for row in self.rows:
            try:
                for path, digest in ((row.image, row.sha256), (row.label, row.label_sha256)):
                    _check_sha256(self._inside(path), digest)
            except DataError as wrong:
                bad.append((row.id, str(wrong)))
        return bad

    def _inside(self, relative: str) -> Path:
        path = self.root / relative
        if not is_inside(self.root, path):
            raise DataError(f"{path}: expected a file inside the chip folder, got a link out of it; copy the file")
        return path


def _check_sha256(path: Path, digest: str) -> None:
    try:
        found = file_sha256(path)
    except OSError as bad:
        raise DataError(f"{path}: expected a chip file, got none ({bad.strerror}); curate the folder again") from bad
    if found != digest:
        raise DataError(
            f"{path}: expected sha256 {digest[:12]}, got {found[:12]}: truncated or changed; curate the folder again"
        )


def digest_chips(chips: ChipFolder, ids: Iterable[str]) -> str:
    """Return a hash of the content of these chips."""
    text = "".join(f"{row.sha256}{row.label_sha256}" for row in map(chips.row, ids))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

"""Unpacks zip archives from strangers: every entry is looked at before the first byte is written."""

from __future__ import annotations

import secrets
import shutil
import stat
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from seawall.errors import ImageryError

_CHUNK = 2**20
FREE = 16 * 2**20
"""Bytes that an archive may unpack to whatever its ratio: texts and small masks shrink a lot."""


@dataclass(frozen=True)
class Budget:
    """What an archive may unpack to.

    Args:
        entries: Most entries.
        bytes: Most bytes in all.
        ratio: Most bytes per stored byte, of an entry over a megabyte and of all entries together.
    """

    entries: int = 20_000
    bytes: int = 2**35
    ratio: float = 200.0


def unpack(
    archive: Path, folder: Path, *, wanted: Callable[[str], bool] = lambda name: True, budget: Budget = Budget()
) -> Path:
    """Unpack the wanted entries of a zip archive into a new folder, all or nothing.

    Args:
        archive: The zip file.
        folder: Made by this call; it must not exist.
        wanted: Chooses entries by name. All entries are checked, wanted or not.
        budget: What it may unpack to.

    Returns:
        The folder.

    Raises:
        ImageryError: The archive is truncated, encrypted, too big, or an entry tries to leave the folder, is a link
            or a device, or comes twice; nothing is left of it.
    """
    if folder.exists():
        raise ImageryError(f"{folder}: expected a new folder, got an old one; choose another or remove it")
    beside = folder.parent / f".{folder.name[:80]}.{secrets.token_hex(6)}.part"
    try:
        with zipfile.ZipFile(archive) as source:
            names = check_entries(archive, source.infolist(), budget, archive.stat().st_size)
            beside.mkdir(parents=True)
            left = budget.bytes
            for info, name in names:
                if not info.is_dir() and wanted(name):
                    left -= _copy(archive, source, info, beside / name, left)
        beside.rename(folder)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as bad:
        raise ImageryError(f"{archive}: expected a whole zip archive, got {bad}; fetch it again") from bad
    except OSError as bad:
        raise ImageryError(f"{archive}: expected to unpack it, got {bad}; check the path and the disk") from bad
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return folder


def check_entries(
    archive: Path, entries: list[zipfile.ZipInfo], budget: Budget, size: int
) -> list[tuple[zipfile.ZipInfo, str]]:
    """Return the entries with their safe relative names.

    Args:
        archive: For messages.
        entries: What the archive's directory says.
        budget: What it may unpack to.
        size: Bytes of the archive.

    Raises:
        ImageryError: One of them is not safe; the whole archive is refused.
    """
    _check_totals(archive, entries, budget, size)
    seen: set[str] = set()
    names = []
    for info in entries:
        name = check_name(archive, info.orig_filename)
        if name.casefold() in seen:
            raise ImageryError(f"{archive}: expected each entry once, got {name!r} twice; fetch it again")
        seen.add(name.casefold())
        if info.flag_bits & 1:
            raise ImageryError(
                f"{archive}: expected a plain archive, got the encrypted entry {name!r}; decrypt it first"
            )
        mode = info.external_attr >> 16
        if mode and stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise ImageryError(f"{archive}: expected files and folders, got the link or device {name!r}; remove it")
        if info.file_size > _CHUNK and info.file_size > budget.ratio * max(1, info.compress_size):
            raise ImageryError(
                f"{archive}: expected entries that shrink to no less than 1/{budget.ratio:g}, got {name!r} with "
                f"{info.file_size} bytes from {info.compress_size}; it looks like a bomb"
            )
        names.append((info, name))
    return names


def _check_totals(archive: Path, entries: list[zipfile.ZipInfo], budget: Budget, size: int) -> None:
    if len(entries) > budget.entries:
        raise ImageryError(
            f"{archive}: expected at most {budget.entries} entries, got {len(entries)}; raise Budget.entries if you trust it"
        )
    total = sum(info.file_size for info in entries)
    if total > budget.bytes:
        raise ImageryError(
            f"{archive}: expected at most {budget.bytes} bytes unpacked, got {total}; raise Budget.bytes if you trust it"
        )
    stored = sum(info.compress_size for info in entries)
    if stored > size:
        raise ImageryError(
            f"{archive}: expected entries of at most {size} stored bytes in all, got {stored}: they share their bytes; it "
            "looks like a bomb"
        )
    if total > FREE and total > budget.ratio * max(1, stored):
        raise ImageryError(
            f"{archive}: expected entries that shrink to no less than 1/{budget.ratio:g} in all, got {total} bytes from "
            f"{stored}; it looks like a bomb"
        )


def check_name(where: Path | str, name: str) -> str:
    """Return a relative name that stays inside its folder.

    Raises:
        ImageryError: It is absolute, climbs out, or has characters that file systems read differently.
    """
    parts = PurePosixPath(name).parts
    bad = (
        not parts
        or name.startswith("/")
        or "\\" in name
        or ".." in parts
        or ":" in parts[0]
        or any(ord(c) < 32 or ord(c) == 127 or c in "\u202a\u202b\u202d\u202e\u2066\u2067\u2068" for c in name)
        or any(len(part.encode(errors="surrogatepass")) > 255 for part in parts)
    )
    if bad:
        raise ImageryError(
            f"{where}: expected names inside the folder, got {name!r}; do not unpack it elsewhere either"
        )
    return "/".join(parts)


def _copy(archive: Path, source: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path, left: int) -> int:
    """Copy one entry, trusting its declared size only as far as the bytes that really come."""
    target.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with source.open(info) as data, target.open("xb") as file:
        while chunk := data.read(_CHUNK):
            written += len(chunk)
            if written > min(left, info.file_size):
                raise ImageryError(
                    f"{archive}: expected {info.file_size} bytes in {info.filename!r}, got more; refuse it"
                )
            file.write(chunk)
    return written

"""A file that exists is a file that is whole, and a run folder has one owner."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO

from seawall.errors import RunError


@contextmanager
def atomic(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that appears under its name only when it is whole: write beside, flush, rename.

    Args:
        path: Final name. On any exception nothing is left under it and an earlier file stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.fchmod(handle, 0o666 & ~_umask())  # mkstemp hides its file from everybody else
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
        _sync_folder(path.parent)
    except BaseException as bad:
        Path(name).unlink(missing_ok=True)
        if isinstance(bad, OSError) and bad.errno is not None:
            bad.filename = str(path)  # a full disk names no file, and nobody knows the one beside
        raise


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a whole file or nothing."""
    with atomic(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


def inside(root: Path, path: Path) -> bool:
    """Tell whether a file lies below a folder once all links are followed."""
    return path.resolve().is_relative_to(root.resolve())


def csv_cells(row: Mapping[str, object]) -> dict[str, object]:
    """Return the cells of a CSV row so that no spreadsheet takes a text for a formula: such texts get a leading quote.

    Numbers stay numbers, negative ones too.

    Example:
        >>> csv_cells({"chip": "=HYPERLINK(1)", "loss": -0.5, "note": "-0.5"})
        {'chip': "'=HYPERLINK(1)", 'loss': -0.5, 'note': '-0.5'}
    """
    return {key: f"'{cell}" if isinstance(cell, str) and _formula(cell) else cell for key, cell in row.items()}


def _formula(text: str) -> bool:
    if not text.startswith(("=", "+", "-", "@", "\t", "\r")):
        return False
    try:
        float(text)
    except ValueError:
        return True
    return False


def _umask() -> int:
    # the only portable way to read it is to set it; the run's threads write under the same one either way
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class RunLock:
    """One run per folder, kept by the operating system: the lock goes with its process, however that ends.

    A `.lock` file in the folder holds the process id for people to read; the lock itself is `flock` on that file, so a
    reused process id, an empty file or two processes that start together cannot deceive it.

    Args:
        folder: The run folder.

    Attributes:
        took_over: An earlier run died here without cleaning up.

    Raises:
        RunError: Another run holds the folder.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / ".lock"
        self.took_over = False
        self._handle = -1

    def __enter__(self) -> RunLock:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        while not self._claim():
            pass
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.path.unlink(missing_ok=True)  # before the lock is released: whoever waits for this file finds it gone
        fcntl.flock(self._handle, fcntl.LOCK_UN)  # a forked child may hold the same descriptor open
        os.close(self._handle)

    def _claim(self) -> bool:
        """Lock the file; False where its last owner removed it in between, so that another try is due."""
        handle = os.open(self.path, os.O_CREAT | os.O_RDWR, 0o666)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                owner = os.pread(handle, 32, 0).decode(errors="replace").strip() or "another run"
                raise RunError(
                    f"{self.path.parent}: expected a free run folder, got one held by process {owner}; wait for it or choose another --out"
                ) from None
            if not _same_file(handle, self.path):
                os.close(handle)
                return False
            self.took_over = os.fstat(handle).st_size > 0
            os.ftruncate(handle, 0)
            os.pwrite(handle, str(os.getpid()).encode(), 0)
        except BaseException:
            os.close(handle)
            raise
        self._handle = handle
        return True


def _same_file(handle: int, path: Path) -> bool:
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    here = os.fstat(handle)
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)

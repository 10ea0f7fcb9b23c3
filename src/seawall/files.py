"""A file that exists is a file that is whole, and a run folder has one owner."""

from __future__ import annotations

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
    """One run per folder: a second one is refused; the lock of a dead process is taken over.

    Args:
        folder: The run folder; a `.lock` file with the process id lives in it while the lock is held.

    Raises:
        RunError: A living process holds the folder.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / ".lock"
        self.took_over = False

    def __enter__(self) -> RunLock:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._claim()
        except FileExistsError:
            owner = self.path.read_text(encoding="utf-8").strip() or "0"
            if owner.isdigit() and _alive(int(owner)):
                raise RunError(
                    f"{self.path.parent}: expected a free run folder, got one held by process {owner}; wait for it or choose another --out"
                ) from None
            self.path.unlink(missing_ok=True)
            self.took_over = True
            self._claim()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.path.unlink(missing_ok=True)

    def _claim(self) -> None:
        handle = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(str(os.getpid()))


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return pid > 0

"""Files: atomic writes, digests, containment, CSV cells, and the lock of a run folder."""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO

from seawall.errors import RunError


@contextmanager
def open_atomic(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for an atomic write: a temporary file beside it is flushed to disk, then renamed.

    Args:
        path: Final name. On any exception an earlier file under it stays and the temporary file is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.fchmod(handle, 0o666 & ~_umask())  # mkstemp gives permissions to the owner alone
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
        flush_to_disk(path.parent)
    except BaseException as bad:
        Path(name).unlink(missing_ok=True)
        if isinstance(bad, OSError) and bad.errno is not None:
            bad.filename = str(path)  # an error of a full disk has no file name, and the temporary one is of no use
        raise


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a file atomically."""
    with open_atomic(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_inside(root: Path, path: Path) -> bool:
    """Return whether a file is below a folder after all links are resolved."""
    return path.resolve().is_relative_to(root.resolve())


def escape_formulas(row: Mapping[str, object]) -> dict[str, object]:
    """Return the cells of a CSV row with a leading quote before texts that a spreadsheet would take for formulas.

    Numbers, also negative ones and as text, are unchanged.

    Example:
        >>> escape_formulas({"chip": "=HYPERLINK(1)", "loss": -0.5, "note": "-0.5"})
        {'chip': "'=HYPERLINK(1)", 'loss': -0.5, 'note': '-0.5'}
    """
    return {key: f"'{cell}" if isinstance(cell, str) and _is_formula(cell) else cell for key, cell in row.items()}


def _is_formula(text: str) -> bool:
    if not text.startswith(("=", "+", "-", "@", "\t", "\r")):
        return False
    try:
        float(text)
    except ValueError:
        return True
    return False


def _umask() -> int:
    # the umask can only be read by setting it; files that another thread creates in between get 022
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def flush_to_disk(path: Path) -> None:
    """Flush a file or a folder to the disk (fsync)."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class RunLock:
    """Lock that allows one process at a time in a run folder; the operating system releases it when the process ends.

    The lock is `flock` on a `.lock` file in the folder, which names the process id for people only: reused process ids,
    empty files and simultaneous starts do not matter.

    Args:
        folder: The run folder.

    Attributes:
        took_over: Whether an earlier process ended here without removing the file.

    Raises:
        RunError: Another run holds the folder.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / ".lock"
        self.took_over = False
        self._handle = -1

    def __enter__(self) -> RunLock:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        while not self._acquire():
            pass
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.path.unlink(
            missing_ok=True
        )  # before the lock is released: a waiting process then notices that the file is gone
        fcntl.flock(self._handle, fcntl.LOCK_UN)  # a forked child may hold the same descriptor open
        os.close(self._handle)

    def _acquire(self) -> bool:
        """Lock the file; return False if its last owner removed it in between, to try again."""
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

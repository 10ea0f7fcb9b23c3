"""Which code made a result: the version and a digest of the package's source files."""

from __future__ import annotations

import hashlib
import sys
from functools import cache
from pathlib import Path

from seawall import __version__


@cache
def code_version() -> str:
    """Return the version and a digest of the source files, such as "0.1.0+3fa9c2e1".

    Two checkouts with one version number but different code have different digests.

    Example:
        >>> code_version().partition("+")[0] == __version__
        True
    """
    found = hashlib.blake2b(digest_size=4)
    home = Path(__file__).parent
    for path in sorted(home.rglob("*.py")):
        found.update(f"{path.relative_to(home)}\0".encode())
        found.update(path.read_bytes())
    return f"{__version__}+{found.hexdigest()}"


@cache
def module_digest(module: str) -> str:
    """Return a hash of the file of an imported module; "" where it has none."""
    path = Path(getattr(sys.modules.get(module), "__file__", None) or "")
    return hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest() if path.is_file() else ""

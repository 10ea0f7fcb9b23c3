"""Identity of the code: the version and digests of source files."""

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
    digest = hashlib.blake2b(digest_size=4)
    home = Path(__file__).parent
    for path in sorted(home.rglob("*.py")):
        digest.update(f"{path.relative_to(home)}\0".encode())
        digest.update(path.read_bytes())
    return f"{__version__}+{digest.hexdigest()}"


@cache
def module_digest(module: str) -> str:
    """Return a digest of the source file of an imported module; "" where it has none."""
    path = Path(getattr(sys.modules.get(module), "__file__", None) or "")
    return hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest() if path.is_file() else ""

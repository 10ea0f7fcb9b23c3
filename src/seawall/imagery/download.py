"""Fetches files from hosts that were named, whole and checked, or not at all."""

from __future__ import annotations

import hashlib
import http.client
import ipaddress
import re
import secrets
import shutil
import socket
import stat
import time
import urllib.request
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO
from urllib.parse import urljoin, urlsplit

from seawall.errors import ImageryError
from seawall.io import atomic

_CHUNK = 2**20
_PAGE = re.compile(rb"^\s*<(!doctype\s+html|html)", re.IGNORECASE)
_HASHES = {"12": ("sha256", 32), "11": ("sha1", 20), "13": ("sha512", 64), "d5": ("md5", 16)}


@dataclass(frozen=True)
class Access:
    """What may be reached.

    Args:
        network: Whether anything may be; without it, local files only.
        hosts: Hosts that files may come from, beside the catalog's own.
        private: Whether addresses of private networks and of this machine may answer.
        bytes: Largest file.
        timeout_s: Longest wait for an answer, or for its next bytes, in seconds.
        total_s: Longest time for a file in all, in seconds; a server that drips bytes is left.
        items: Most items of a search.
        pages: Most pages of a search.
    """

    network: bool = False
    hosts: tuple[str, ...] = ()
    private: bool = False
    bytes: int = 2**34
    timeout_s: float = 60.0
    total_s: float = 6 * 3600.0
    items: int = 500
    pages: int = 100


def check_url(url: str, access: Access, hosts: tuple[str, ...]) -> str:
    """Return an address that may be asked.

    Args:
        url: The address.
        access: What may be reached.
        hosts: Hosts that are fine here.

    Raises:
        ImageryError: No network is allowed, the scheme or the host is not fine, or the host is a private machine.
    """
    parts = urlsplit(url)
    if not access.network:
        raise ImageryError(f"{url}: expected a local file, got an address and no permission; use --allow-network")
    if parts.scheme not in ("https", "http") or not parts.hostname or parts.username or parts.password:
        raise ImageryError(f"{url}: expected a plain http address, got {parts.scheme or 'none'}; refuse the item")
    if parts.hostname not in hosts:
        raise ImageryError(
            f"{url}: expected one of the hosts {', '.join(hosts)}, got {parts.hostname}; name it if you trust it"
        )
    if not access.private:
        _check_public(url, parts.hostname)
    return url


def fetch(url: str, path: Path, access: Access, *, hosts: tuple[str, ...] = (), checksum: str | None = None) -> None:
    """Fetch a file; it appears under its name only when it is whole.

    Args:
        url: Where it is.
        path: Final name.
        access: What may be reached.
        hosts: Hosts that redirects may lead to, beside its own and those of `access`.
        checksum: The STAC `file:checksum` (multihash in hex).

    Raises:
        ImageryError: The answer is cut, too big, too slow, an error page, not what the checksum says, or leads elsewhere.
    """
    end = time.monotonic() + access.total_s
    own = urlsplit(url).hostname or ""
    allowed = tuple(dict.fromkeys((own, *hosts, *access.hosts)))
    opener = urllib.request.build_opener(_Careful(access, allowed))
    try:
        with opener.open(check_url(url, access, allowed), timeout=access.timeout_s) as answer, atomic(path) as file:
            _copy(url, answer, file, access, checksum, end)
    except (OSError, http.client.HTTPException) as bad:
        raise ImageryError(f"{url}: expected a file, got {bad}; try again later") from bad


class _Careful(urllib.request.HTTPRedirectHandler):
    """Follows redirects only to where a first request could have gone."""

    max_redirections = 5

    def __init__(self, access: Access, hosts: tuple[str, ...]) -> None:
        self.access, self.hosts = access, hosts

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        check_url(urljoin(req.full_url, newurl), self.access, self.hosts)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _copy(
    url: str, answer: http.client.HTTPResponse, file: IO[bytes], access: Access, checksum: str | None, end: float
) -> None:
    declared = int(answer.headers.get("Content-Length") or -1)
    name, digest = _hash(url, checksum)
    size = 0
    while chunk := answer.read1(_CHUNK):  # read() would wait for all of the chunk, however slowly it comes
        if time.monotonic() > end:
            raise ImageryError(
                f"{url}: expected the file within {access.total_s:g} s, got {size + len(chunk)} bytes by then; try again "
                "later, or raise Access.total_s"
            )
        if size == 0 and _PAGE.match(chunk):
            raise ImageryError(f"{url}: expected a file, got an HTML page; look at the address in a browser")
        size += len(chunk)
        if size > access.bytes:
            raise ImageryError(
                f"{url}: expected at most {access.bytes} bytes, got more; raise Access.bytes if you trust it"
            )
        if name:
            name.update(chunk)
        file.write(chunk)
    if size == 0 or (declared >= 0 and size != declared):
        raise ImageryError(f"{url}: expected {max(declared, 1)} bytes, got {size}; the download was cut, try again")
    if name and name.hexdigest() != digest:
        raise ImageryError(f"{url}: expected checksum {digest[:16]}..., got {name.hexdigest()[:16]}...; fetch it again")


def _hash(url: str, checksum: str | None) -> tuple[hashlib._Hash | None, str]:
    if checksum is None:
        return None, ""
    text = checksum.lower()
    code, length = ("d5", text[4:6]) if text.startswith("d501") else (text[:2], text[2:4])
    digest = text[6:] if code == "d5" else text[4:]
    known = _HASHES.get(code)
    if (
        known is None
        or not re.fullmatch(r"[0-9a-f]+", text)
        or length != f"{known[1]:02x}"
        or len(digest) != 2 * known[1]
    ):
        raise ImageryError(f"{url}: expected a multihash checksum, got {checksum[:20]!r}; correct the item")
    return hashlib.new(known[0], usedforsecurity=False), digest


def _check_public(url: str, host: str) -> None:
    try:
        answers = socket.getaddrinfo(host, None, proto=socket.IPPROTO_TCP)
    except OSError as bad:
        raise ImageryError(f"{url}: expected a host that answers, got {bad}; check the address") from bad
    for answer in answers:
        address = ipaddress.ip_address(str(answer[4][0]).partition("%")[0])
        if not address.is_global:
            raise ImageryError(f"{url}: expected a public host, got the private address {address}; refuse the item")


_UNZIP_CHUNK = 2**20
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
                    left -= _copy_entry(archive, source, info, beside / name, left)
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
        if info.file_size > _UNZIP_CHUNK and info.file_size > budget.ratio * max(1, info.compress_size):
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


def _copy_entry(archive: Path, source: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path, left: int) -> int:
    """Copy one entry, trusting its declared size only as far as the bytes that really come."""
    target.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with source.open(info) as data, target.open("xb") as file:
        while chunk := data.read(_UNZIP_CHUNK):
            written += len(chunk)
            if written > min(left, info.file_size):
                raise ImageryError(
                    f"{archive}: expected {info.file_size} bytes in {info.filename!r}, got more; refuse it"
                )
            file.write(chunk)
    return written

"""Downloads of files from allowed hosts, and their unpacking, with limits and checksums; both are all or nothing."""

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
from seawall.io import open_atomic

_CHUNK_BYTES = 2**20
SMALL_ARCHIVE_BYTES = 16 * 2**20
"""Archives that unpack to no more bytes may have any compression ratio: texts and small masks compress well."""
_HTML_START = re.compile(rb"^\s*<(!doctype\s+html|html)", re.IGNORECASE)
_MULTIHASHES = {"12": ("sha256", 32), "11": ("sha1", 20), "13": ("sha512", 64), "d5": ("md5", 16)}


@dataclass(frozen=True)
class Access:
    """Limits of network access.

    Args:
        network: Whether the network may be used at all; otherwise local files only.
        hosts: Allowed hosts besides the catalog's own.
        private: Whether addresses of private networks and of this machine are allowed.
        bytes: Largest file, in bytes.
        timeout_s: Timeout of the connection and of each read, in seconds.
        total_s: Timeout of a whole file, in seconds; it ends downloads from very slow servers.
        items: Largest number of items of a search.
        pages: Largest number of pages of a search.
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
    """Return an address after checking that access to it is allowed.

    Args:
        url: The address.
        access: Limits of network access.
        hosts: Allowed hosts.

    Raises:
        ImageryError: The network is not allowed, the scheme or the host is not allowed, or the address is private.
    """
    parts = urlsplit(url)
    if not access.network:
        raise ImageryError(f"{url}: expected a local file, got an address and no permission; use --allow-network")
    if parts.scheme not in ("https", "http") or not parts.hostname or parts.username or parts.password:
        raise ImageryError(f"{url}: expected a plain http address, got {parts.scheme or 'none'}; refuse the item")
    if parts.hostname not in hosts:
        raise ImageryError(
            f"{url}: expected one of the hosts {', '.join(hosts)}, got {parts.hostname}; add it to Access.hosts if you trust it"
        )
    if not access.private:
        _check_public(url, parts.hostname)
    return url


def fetch(url: str, path: Path, access: Access, *, hosts: tuple[str, ...] = (), checksum: str | None = None) -> None:
    """Download a file; it appears under its name only when it is complete and its checksum is right.

    Args:
        url: Its address.
        path: Final name.
        access: Limits of network access.
        hosts: Hosts that redirects may lead to, besides its own and those of `access`.
        checksum: The STAC `file:checksum` (multihash in hex).

    Raises:
        ImageryError: The download is truncated, too large, too slow, an HTML page, has another checksum, or is redirected to
            a host that is not allowed.
    """
    end = time.monotonic() + access.total_s
    own = urlsplit(url).hostname or ""
    allowed = tuple(dict.fromkeys((own, *hosts, *access.hosts)))
    opener = urllib.request.build_opener(_CheckedRedirects(access, allowed))
    try:
        with (
            opener.open(check_url(url, access, allowed), timeout=access.timeout_s) as answer,
            open_atomic(path) as file,
        ):
            _copy(url, answer, file, access, checksum, end)
    except (OSError, http.client.HTTPException) as bad:
        raise ImageryError(f"{url}: expected a file, got {bad}; try again later") from bad


class _CheckedRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects only to addresses that `check_url` allows."""

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
    name, digest = _multihash(url, checksum)
    size = 0
    while chunk := answer.read1(_CHUNK_BYTES):  # read() would wait for the whole chunk, beyond the timeout
        if time.monotonic() > end:
            raise ImageryError(
                f"{url}: expected the file within {access.total_s:g} s, got {size + len(chunk)} bytes by then; try again "
                "later, or raise Access.total_s"
            )
        if size == 0 and _HTML_START.match(chunk):
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


def _multihash(url: str, checksum: str | None) -> tuple[hashlib._Hash | None, str]:
    if checksum is None:
        return None, ""
    text = checksum.lower()
    code, length = ("d5", text[4:6]) if text.startswith("d501") else (text[:2], text[2:4])
    digest = text[6:] if code == "d5" else text[4:]
    known = _MULTIHASHES.get(code)
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


@dataclass(frozen=True)
class UnzipLimits:
    """Largest content of a zip archive.

    Args:
        entries: Largest number of entries.
        bytes: Largest size of all entries, in bytes.
        ratio: Largest compression ratio, of an entry over a megabyte and of all entries together.
    """

    entries: int = 20_000
    bytes: int = 2**35
    ratio: float = 200.0


def unzip(
    archive: Path,
    folder: Path,
    *,
    wanted: Callable[[str], bool] = lambda name: True,
    limits: UnzipLimits = UnzipLimits(),
) -> Path:
    """Unpack entries of a zip archive into a new folder, all or nothing.

    Args:
        archive: The zip file.
        folder: New folder; it must not exist.
        wanted: Selects entries by name. All entries are checked, also those that are not selected.
        limits: Largest content.

    Returns:
        The folder.

    Raises:
        ImageryError: The archive is truncated, encrypted or too large, or the path of an entry leaves the folder, is a link
            or a device, or is repeated; nothing is written.
    """
    if folder.exists():
        raise ImageryError(f"{folder}: expected a new folder, got an old one; choose another or remove it")
    beside = folder.parent / f".{folder.name[:80]}.{secrets.token_hex(6)}.part"
    try:
        with zipfile.ZipFile(archive) as source:
            names = check_entries(archive, source.infolist(), limits, archive.stat().st_size)
            beside.mkdir(parents=True)
            left = limits.bytes
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
    archive: Path, entries: list[zipfile.ZipInfo], limits: UnzipLimits, size: int
) -> list[tuple[zipfile.ZipInfo, str]]:
    """Check the entries of an archive and return them with their relative paths.

    Args:
        archive: Path of the archive, for messages.
        entries: Its directory.
        limits: Largest content.
        size: Size of the archive in bytes.

    Raises:
        ImageryError: An entry is not safe; the whole archive is refused.
    """
    _check_totals(archive, entries, limits, size)
    seen: set[str] = set()
    names = []
    for info in entries:
        name = check_entry_name(archive, info.orig_filename)
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
        if info.file_size > _CHUNK_BYTES and info.file_size > limits.ratio * max(1, info.compress_size):
            raise ImageryError(
                f"{archive}: expected entries that shrink to no less than 1/{limits.ratio:g}, got {name!r} with "
                f"{info.file_size} bytes from {info.compress_size}; it looks like a bomb"
            )
        names.append((info, name))
    return names


def _check_totals(archive: Path, entries: list[zipfile.ZipInfo], limits: UnzipLimits, size: int) -> None:
    if len(entries) > limits.entries:
        raise ImageryError(
            f"{archive}: expected at most {limits.entries} entries, got {len(entries)}; raise UnzipLimits.entries if you trust it"
        )
    total = sum(info.file_size for info in entries)
    if total > limits.bytes:
        raise ImageryError(
            f"{archive}: expected at most {limits.bytes} bytes unpacked, got {total}; raise UnzipLimits.bytes if you trust it"
        )
    stored = sum(info.compress_size for info in entries)
    if stored > size:
        raise ImageryError(
            f"{archive}: expected entries of at most {size} stored bytes in all, got {stored}: they share their bytes; it "
            "looks like a bomb"
        )
    if total > SMALL_ARCHIVE_BYTES and total > limits.ratio * max(1, stored):
        raise ImageryError(
            f"{archive}: expected entries that shrink to no less than 1/{limits.ratio:g} in all, got {total} bytes from "
            f"{stored}; it looks like a bomb"
        )


def check_entry_name(where: Path | str, name: str) -> str:
    """Return the name of an archive's entry as a relative path inside the folder.

    Raises:
        ImageryError: It is absolute, leaves the folder, or has characters that file systems interpret differently.
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
    """Copy one entry and return its size; an entry larger than declared is refused."""
    target.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with source.open(info) as data, target.open("xb") as file:
        while chunk := data.read(_CHUNK_BYTES):
            written += len(chunk)
            if written > min(left, info.file_size):
                raise ImageryError(
                    f"{archive}: expected {info.file_size} bytes in {info.filename!r}, got more; refuse it"
                )
            file.write(chunk)
    return written

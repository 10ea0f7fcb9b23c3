"""Fetches files from hosts that were named, whole and checked, or not at all."""

from __future__ import annotations

import hashlib
import http.client
import ipaddress
import re
import socket
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
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

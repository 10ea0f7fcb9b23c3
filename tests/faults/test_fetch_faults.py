"""A server on this machine that misbehaves: cut answers, error pages, redirects, endless searches."""

import contextlib
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from seawall.errors import ImageryError
from seawall.imagery.bounding_boxes import BoundingBox
from seawall.imagery.download import Access, check_url, fetch
from seawall.imagery.stac import StacItem, search_items

BODY = b"II*\0" + bytes(range(256)) * 64
HERE = Access(network=True, private=True, timeout_s=5)


class Server(BaseHTTPRequestHandler):
    """Answers each path with its own fault."""

    def log_message(self, *_: object) -> None: ...

    def _send(self, body: bytes, code: int = 200, **headers: str) -> None:
        self.send_response(code)
        for name, value in ({"Content_Length": str(len(body))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        base = f"http://127.0.0.1:{self.server.server_port}"  # type: ignore[attr-defined]
        path = self.path.partition("?")[0]
        if path == "/good":
            self._send(BODY)
        elif path == "/cut":
            self._send(BODY[:6000], Content_Length=str(len(BODY)))
        elif path == "/page":
            self._send(b"\n <!DOCTYPE html><html>sign in</html>")
        elif path == "/empty":
            self._send(b"")
        elif path == "/drip":
            self._send(BODY[:1], Content_Length=str(len(BODY)))
            with contextlib.suppress(OSError):
                for at in range(1, 400):
                    time.sleep(0.02)
                    self.wfile.write(BODY[at : at + 1])
                    self.wfile.flush()
        elif path == "/to-good":
            self._send(b"", 302, Location="/good")
        elif path == "/to-other":
            self._send(b"", 302, Location="http://169.254.169.254/latest/meta-data")
        elif path == "/to-file":
            self._send(b"", 302, Location="file:///etc/passwd")
        elif path == "/loop":
            self._send(b"", 302, Location="/loop")
        elif path == "/stac":
            conforms = [f"https://api.stacspec.org/v1.0.0/{part}" for part in ("core", "item-search")]
            links = [
                {"rel": "root", "href": f"{base}/stac"},
                {"rel": "search", "href": f"{base}/search", "method": "GET", "type": "application/geo+json"},
            ]
            root = {"type": "Catalog", "id": "c", "description": "d", "stac_version": "1.0.0", "conformsTo": conforms}
            self._send(json.dumps(root | {"links": links}).encode(), Content_Type="application/json")
        elif path == "/search":
            self._send(json.dumps(self._found(base)).encode(), Content_Type="application/geo+json")
        else:
            self._send(b"", 404)

    do_POST = do_GET  # noqa: N815

    def _found(self, base: str) -> dict[str, object]:
        features = [
            {"type": "Feature", "id": f"i{n}", "properties": {"eo:cloud_cover": 9.0 - n}, "assets": {}, "links": []}
            for n in range(3)
        ]
        endless = "endless" in self.server.mode  # type: ignore[attr-defined]
        links = [{"rel": "next", "href": f"{base}/search?page=2", "method": "GET"}] if endless else []
        return {"type": "FeatureCollection", "features": features, "links": links}


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    made = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    made.mode = ""  # type: ignore[attr-defined]
    threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def url(server: ThreadingHTTPServer, path: str) -> str:
    return f"http://127.0.0.1:{server.server_port}/{path}"


def test_a_whole_file_comes_through(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    sums = (
        "1220" + hashlib.sha256(BODY).hexdigest(),
        "d50110" + hashlib.md5(BODY, usedforsecurity=False).hexdigest(),
        None,
    )
    for number, checksum in enumerate(sums):
        fetch(url(server, "to-good"), tmp_path / str(number), HERE, checksum=checksum)
        assert (tmp_path / str(number)).read_bytes() == BODY


@pytest.mark.parametrize(
    ("path", "match"),
    [
        ("cut", "the download was cut|IncompleteRead"),
        ("page", "got an HTML page"),
        ("empty", "the download was cut"),
        ("none", "404"),
        ("to-other", "expected one of the hosts"),
        ("to-file", "plain http address|unknown url type|not allowed"),
        ("loop", "infinite loop|redirect"),
    ],
)
def test_what_is_not_whole_or_leads_elsewhere(
    server: ThreadingHTTPServer, tmp_path: Path, path: str, match: str
) -> None:
    with pytest.raises(ImageryError, match=match):
        fetch(url(server, path), tmp_path / "a.tif", HERE)
    assert not list(tmp_path.iterdir())


def test_a_server_that_drips_is_left(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(ImageryError, match=r"expected the file within 0\.3 s, got \d+ bytes by then"):
        fetch(url(server, "drip"), tmp_path / "a", Access(network=True, private=True, timeout_s=5, total_s=0.3))
    assert time.monotonic() - start < 3
    assert not list(tmp_path.iterdir())


def test_checksums_and_budgets(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    for checksum, match in (
        ("1220" + "0" * 64, "expected checksum 0000"),
        ("zz", "multihash"),
        ("1220ab", "multihash"),
    ):
        with pytest.raises(ImageryError, match=match):
            fetch(url(server, "good"), tmp_path / "a", HERE, checksum=checksum)
    with pytest.raises(ImageryError, match="at most 100 bytes"):
        fetch(url(server, "good"), tmp_path / "a", Access(network=True, private=True, bytes=100))
    assert not list(tmp_path.iterdir())


def test_private_machines_are_not_asked(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    with pytest.raises(ImageryError, match=r"private address 127\.0\.0\.1"):
        fetch(url(server, "good"), tmp_path / "a", Access(network=True))
    with pytest.raises(ImageryError, match="--allow-network"):
        fetch(url(server, "good"), tmp_path / "a", Access())
    for host in ("10.0.0.1", "192.168.1.1", "169.254.169.254", "[::1]", "0.0.0.0"):
        with pytest.raises(ImageryError, match="private address"):
            check_url(f"http://{host}/", Access(network=True), (host.strip("[]"),))


def test_an_asset_lands_under_a_safe_name(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    item = StacItem({"id": "../x", "assets": {"../../B03": {"href": "good"}}}, url(server, "items"))
    path = item.download("../../B03", tmp_path, HERE)
    assert path == tmp_path / "x_B03.tif" and path.read_bytes() == BODY


def test_a_search_ends(server: ThreadingHTTPServer) -> None:
    box = BoundingBox("b", 10, 11, 51, 50)
    ask = (url(server, "stac"), "s2", box, "2023-01-01", "2023-12-31")
    assert [i.id for i in search_items(*ask, HERE)] == ["i2", "i1", "i0"]
    assert [i.id for i in search_items(*ask, HERE, cloud=7.5)] == ["i2"]
    server.mode = "endless"  # type: ignore[attr-defined]
    with pytest.raises(ImageryError, match="expected pages that end"):
        search_items(*ask, HERE)
    with pytest.raises(ImageryError, match="private address"):
        search_items(*ask, Access(network=True))
    with pytest.raises(ImageryError, match="expected a STAC API"):
        search_items(url(server, "none"), *ask[1:], HERE)

"""Archives from strangers: nothing leaves the folder, nothing bursts, nothing is left behind."""

import stat
import zipfile
from pathlib import Path

import pytest

from seawall.errors import ImageryError
from seawall.imagery.download import UnzipLimits, check_entries, check_entry_name, unzip


def pack(path: Path, *entries: tuple[str | zipfile.ZipInfo, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as sink:
        for name, data in entries:
            sink.writestr(name, data)
    return path


def refused(archive: Path, match: str, limits: UnzipLimits = UnzipLimits()) -> None:
    folder = archive.parent / "out"
    with pytest.raises(ImageryError, match=match):
        unzip(archive, folder, limits=limits)
    assert sorted(p.name for p in archive.parent.iterdir()) == [archive.name]


def test_a_plain_archive_is_unpacked(tmp_path: Path) -> None:
    archive = pack(tmp_path / "a.zip", ("a/", b""), ("a/b.txt", b"hello"), ("a/c.txt", b"no"))
    folder = unzip(archive, tmp_path / "out", wanted=lambda name: name.endswith("b.txt"))
    assert (folder / "a" / "b.txt").read_bytes() == b"hello"
    assert not (folder / "a" / "c.txt").exists()
    with pytest.raises(ImageryError, match="expected a new folder"):
        unzip(archive, folder)


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "a/../../x",
        "/etc/x",
        "C:/x",
        "C:x",
        "a\\b",
        "..\\x",
        "a/\nb",
        "a\x1bb",
        "",
        "a/" + "x" * 300,
        "\u202egpj.a",
    ],
)
def test_names_that_leave_or_hide(tmp_path: Path, name: str) -> None:
    with pytest.raises(ImageryError, match="expected names inside the folder"):
        check_entry_name("a.zip", name)
    if name:
        refused(pack(tmp_path / "a.zip", ("fine", b"1"), (name, b"2")), "expected names inside the folder")


def test_dots_inside_a_name_are_fine() -> None:
    assert check_entry_name("a.zip", "a/b..c/./d") == "a/b..c/d"


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_the_same_name_twice_also_in_another_case(tmp_path: Path) -> None:
    refused(pack(tmp_path / "a.zip", ("a/b", b"1"), ("a/b", b"2")), "twice")
    refused(pack(tmp_path / "a.zip", ("a/b", b"1"), ("A/B", b"2")), "twice")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO])
def test_links_and_devices(tmp_path: Path, kind: int) -> None:
    info = zipfile.ZipInfo("a")
    info.external_attr = (kind | 0o777) << 16
    refused(pack(tmp_path / "a.zip", (info, b"/etc/passwd")), "got the link or device 'a'")


def test_bombs(tmp_path: Path) -> None:
    archive = pack(tmp_path / "a.zip", ("a", b"\0" * 30_000_000))
    refused(archive, "looks like a bomb")
    refused(archive, "at most 1000 bytes", UnzipLimits(bytes=1000, ratio=1e9))
    refused(
        pack(tmp_path / "a.zip", *((str(i), b"") for i in range(20))), "at most 10 entries", UnzipLimits(entries=10)
    )


def test_an_entry_that_lies_about_its_size(tmp_path: Path) -> None:
    archive = pack(tmp_path / "a.zip", ("a", b"x" * 5000), method=zipfile.ZIP_STORED)
    raw = archive.read_bytes()
    raw = raw.replace((5000).to_bytes(4, "little") * 2, (5000).to_bytes(4, "little") + (10).to_bytes(4, "little"))
    archive.write_bytes(raw)
    refused(archive, "expected")


def test_encrypted(tmp_path: Path) -> None:
    archive = pack(tmp_path / "a.zip", ("a", b"x"))
    raw = bytearray(archive.read_bytes())
    at = raw.index(b"PK\x01\x02")
    raw[at + 8] |= 1
    archive.write_bytes(raw)
    refused(archive, "encrypted entry 'a'")


def test_truncated_and_damaged(tmp_path: Path) -> None:
    archive = pack(tmp_path / "a.zip", ("a", bytes(range(256)) * 40))
    whole = archive.read_bytes()
    for size in (1, 30, len(whole) // 2, len(whole) - 1):
        archive.write_bytes(whole[:size])
        refused(archive, "expected a whole zip archive")
    flipped = bytearray(whole)
    flipped[45] ^= 0xFF
    archive.write_bytes(flipped)
    refused(archive, "expected a whole zip archive")


def test_a_local_name_that_differs_from_the_central_one(tmp_path: Path) -> None:
    archive = pack(tmp_path / "a.zip", ("name1", b"x"))
    archive.write_bytes(archive.read_bytes().replace(b"name1", b"name2", 1))
    refused(archive, "expected a whole zip archive")


def test_many_small_bombs_are_one_big_bomb(tmp_path: Path) -> None:
    entries = [(f"n{i}", bytes(2**20)) for i in range(300)]
    refused(
        pack(tmp_path / "a.zip", *entries),
        r"no less than 1/200 in all, got 314572800 bytes from \d+; it looks like a bomb",
    )


def test_small_texts_may_shrink_a_lot(tmp_path: Path) -> None:
    archive = pack(tmp_path / "a.zip", *((f"n{i}", bytes(10**6)) for i in range(15)))
    assert len(list(unzip(archive, tmp_path / "out").iterdir())) == 15


def test_entries_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    archive = pack(tmp_path / "a.zip", ("a", b"x" * 3000), ("b", b"y" * 3000), method=zipfile.ZIP_STORED)
    with zipfile.ZipFile(archive) as source:
        entries = source.infolist()
    for entry in entries:
        entry.header_offset = 0
    assert check_entries(archive, entries, UnzipLimits(), 6000)
    with pytest.raises(ImageryError, match="share their bytes"):
        check_entries(archive, entries, UnzipLimits(), 5999)

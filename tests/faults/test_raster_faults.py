"""Rasters that lie, break off or burst: each is refused with one clear line and nothing is lost."""

import os
import resource
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine

from seawall.errors import ImageryError
from seawall.geo import cog
from seawall.geo.raster import CogWriter, Grid, Limits, open_raster, read_raster, write_cog

NOISE = np.random.default_rng(0).integers(0, 4000, (2, 300, 300)).astype(np.uint16)


def tiled(path: Path, data: np.ndarray = NOISE, **more: object) -> Path:
    count, height, width = data.shape
    profile = {
        "driver": "GTiff", "count": count, "height": height, "width": width, "dtype": data.dtype.name,
        "tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate",
    }  # fmt: skip
    with rasterio.open(path, "w", **(profile | more)) as sink:
        sink.descriptions = tuple(f"B{i:02d}" for i in range(2, 2 + count))
        sink.write(data)
    return path


def refused(path: Path | str, match: str, **more: object) -> None:
    with pytest.raises(ImageryError, match=match) as caught:
        read_raster(path, **more)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value), "one line"
    assert ";" in str(caught.value), "says what to do"


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "a.tif").touch()
    refused(tmp_path / "a.tif", "0 bytes")


def test_a_truncated_header(tmp_path: Path) -> None:
    whole = tiled(tmp_path / "a.tif").read_bytes()
    for size in (1, 4, 7, 8, 20):
        (tmp_path / "b.tif").write_bytes(whole[:size])
        refused(tmp_path / "b.tif", "expected a raster of format GTiff")


def test_truncated_data_names_the_first_bad_block(tmp_path: Path) -> None:
    whole = tiled(tmp_path / "a.tif").read_bytes()
    (tmp_path / "b.tif").write_bytes(whole[: int(len(whole) * 0.6)])
    refused(tmp_path / "b.tif", r"ends inside block \(row \d, column \d\) of band B0\d")


def test_a_cog_cut_at_any_length_is_refused(tmp_path: Path) -> None:
    write_cog(tmp_path / "a.tif", NOISE, Grid(300, 300), bands=("B03", "B08"))
    whole = (tmp_path / "a.tif").read_bytes()
    for size in np.linspace(1, len(whole) - 5, 25).astype(int):
        (tmp_path / "b.tif").write_bytes(whole[:size])
        refused(tmp_path / "b.tif", "expected")


def test_a_flipped_byte_in_a_compressed_block(tmp_path: Path) -> None:
    path = tiled(tmp_path / "a.tif")
    with rasterio.open(path) as source:
        at = int(source.get_tag_item("BLOCK_OFFSET_2_1", "TIFF", bidx=1))
    raw = bytearray(path.read_bytes())
    raw[at : at + 8] = b"\xff" * 8
    path.write_bytes(raw)
    refused(path, r"bad block \(row 1, column 2\)")


def flipped(path: Path, whole: bytes, at: int, bit: int) -> Path:
    """The same file with one bit turned over."""
    raw = bytearray(whole)
    raw[at] ^= 1 << bit
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize(
    "more",
    [
        {"dtype": "float32"},
        {"predictor": 2},
        {"predictor": 2, "interleave": "pixel"},
        {"tiled": False, "blockxsize": 300, "blockysize": 16},
        {"cog": True},
    ],
)
def test_every_flipped_bit_of_a_deflated_block_is_seen(tmp_path: Path, more: dict[str, object]) -> None:
    whole = tmp_path / "a.tif"
    if "cog" in more:
        write_cog(whole, NOISE, Grid(300, 300), bands=("B03", "B08"))
    else:
        tiled(whole, NOISE.astype(str(more.get("dtype", "uint16"))), **more)
    raw = whole.read_bytes()
    with open_raster(whole) as source:
        spans = list(source._unchecked.values())
    rng = np.random.default_rng(0)
    for _ in range(40):
        start, size = spans[rng.integers(len(spans))]
        at = int(rng.integers(start, start + size))
        refused(flipped(tmp_path / "b.tif", raw, at, int(rng.integers(8))), r"bad block \(row \d+, column \d+\) of ")


def test_a_flipped_bit_of_a_lerc_block_never_gives_other_pixels(tmp_path: Path) -> None:
    path = tiled(tmp_path / "a.tif", compress="lerc")
    raw, truth = path.read_bytes(), read_raster(path).data
    with rasterio.open(path) as source:
        start = int(source.get_tag_item("BLOCK_OFFSET_1_1", "TIFF", bidx=1))
        size = int(source.get_tag_item("BLOCK_SIZE_1_1", "TIFF", bidx=1))
    refusals = 0
    for at in range(start, start + size, max(size // 40, 1)):
        try:
            data = read_raster(flipped(tmp_path / "b.tif", raw, at, at % 8)).data
        except ImageryError:
            refusals += 1
        else:
            np.testing.assert_array_equal(data, truth)
    assert refusals > 20


def test_only_the_blocks_that_are_read_are_checked_and_only_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from seawall.geo import raster

    looked: list[int] = []
    true = raster.zlib_damage
    monkeypatch.setattr(raster, "zlib_damage", lambda fd, span, most: looked.append(span[0]) or true(fd, span, most))
    with open_raster(tiled(tmp_path / "a.tif", interleave="band")) as source:
        total = len(source._unchecked)
        source.read((0, 0, 64, 65), ("B02",))
        assert len(looked) == 2
        source.read((0, 0, 64, 64), ("B02",))
        assert len(looked) == 2
        source.read()
        source.read()
    assert len(looked) == len(set(looked)) == total == 50


@pytest.mark.parametrize("kind", ["rgb", "gray16", "palette"])
def test_a_png_cut_or_flipped_anywhere_is_refused(tmp_path: Path, kind: str) -> None:
    path, rng = tmp_path / "a.png", np.random.default_rng(1)
    shape, dtype = {
        "rgb": ((3, 90, 70), "uint8"),
        "gray16": ((1, 90, 70), "uint16"),
        "palette": ((1, 90, 70), "uint8"),
    }[kind]
    data = rng.integers(0, 250, shape).astype(dtype)
    with rasterio.open(path, "w", driver="PNG", count=shape[0], height=90, width=70, dtype=dtype) as sink:
        sink.write(data)
        if kind == "palette":
            sink.write_colormap(1, {i: (i, 0, 0, 255) for i in range(256)})
    np.testing.assert_array_equal(read_raster(path).data, data)
    whole = path.read_bytes()
    for size in np.linspace(30, len(whole) - 1, 25).astype(int):
        (tmp_path / "b.png").write_bytes(whole[:size])
        refused(tmp_path / "b.png", "truncated or damaged|damaged or truncated")
    for at in rng.integers(33, len(whole), 40):
        refused(
            flipped(tmp_path / "b.png", whole, int(at), int(rng.integers(8))),
            "truncated or damaged|damaged or truncated",
        )


def test_a_png_with_right_chunks_and_too_few_pixels_is_refused(tmp_path: Path) -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0))
    rows = zlib.compress(b"\0" * 9 * 8)
    for name, body, right in (("whole", rows, True), ("short", zlib.compress(b"\0" * 9 * 7), False), ("cut", rows[:-4], False)):  # fmt: skip
        path = tmp_path / f"{name}.png"
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", body) + chunk(b"IEND", b""))
        if right:
            assert read_raster(path).data.shape == (1, 8, 8)
        else:
            refused(path, "truncated or damaged one .* bytes of pixels")


def test_an_interlaced_png_is_counted_by_its_seven_passes() -> None:
    from seawall.geo.raster_guards import _png_data_bytes

    head = struct.pack(">IIBBBBB", 5, 3, 8, 2, 0, 0, 1)
    # Passes of a 5x3 image: 1x1, 1x1, 2x0, 1... as the PNG specification's table 8.2 gives them.
    sizes = [(1, 1), (1, 1), (2, 0), (1, 1), (3, 1), (2, 2), (5, 1)]
    assert _png_data_bytes(head) == sum(rows * (1 + 3 * cols) for cols, rows in sizes if rows and cols)


def test_a_damaged_block_table_is_an_imagery_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from seawall.geo import raster_guards

    class Broken:
        driver, name, interleaving, height, width = "GTiff", str(tiled(tmp_path / "a.tif")), None, 64, 64
        indexes, block_shapes = (1,), [(64, 64)]

        def get_tag_item(self, *_: object, **__: object) -> str:
            raise raster_guards.CPLE_BaseError(1, 1, "TIFFFetchDirectory: cannot read")

    with pytest.raises(ImageryError, match="says where its blocks are, got a damaged one"):
        raster_guards.check_blocks("a.tif", Broken())  # type: ignore[arg-type]


def test_floats_of_16_bits_are_read_as_floats(tmp_path: Path) -> None:
    data = (NOISE / 4096).astype(np.float16)
    path = tiled(tmp_path / "a.tif", data.astype(np.float32), nbits=16)
    raster = read_raster(path)
    assert raster.dtype == "float32"
    np.testing.assert_array_equal(raster.data, data.astype(np.float32))
    with pytest.raises(ImageryError, match="float16"):
        write_cog(tmp_path / "b.tif", data, Grid(300, 300), bands=("B03", "B08"))


def test_a_truncated_jpeg_2000_is_not_zeros(tmp_path: Path) -> None:
    path = tmp_path / "a.jp2"
    with rasterio.open(
        path, "w", driver="JP2OpenJPEG", count=1, height=300, width=300, dtype="uint16", quality=100, reversible="YES"
    ) as sink:
        sink.write(NOISE[:1])
    np.testing.assert_array_equal(read_raster(path).data, NOISE[:1])
    whole = path.read_bytes()
    for share in (0.3, 0.7, 0.98):
        path.write_bytes(whole[: int(len(whole) * share)])
        refused(path, r"bad block \(row 0, column 0\) of band 1")
    path.write_bytes(whole[:40])
    refused(path, "damaged or truncated JPEG 2000")


def test_absent_blocks_are_never_zeros(tmp_path: Path) -> None:
    for nodata in (None, 0):
        path = tmp_path / f"{nodata}.tif"
        with rasterio.open(
            path, "w", driver="GTiff", count=1, height=256, width=256, dtype="uint8",
            tiled=True, blockxsize=64, blockysize=64, sparse_ok=True, nodata=nodata,
        ) as sink:  # fmt: skip
            sink.write(np.ones((1, 64, 128), np.uint8), window=rasterio.windows.Window(0, 0, 128, 64))
    refused(tmp_path / "None.tif", r"87.5% of the blocks absent")
    seen = read_raster(tmp_path / "0.tif").seen
    assert seen[:64, :128].all() and seen.sum() == 64 * 128


def test_a_killed_writer_leaves_nothing_to_trust(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    code = (
        "import os, rasterio, signal\n"
        f"sink = rasterio.open({str(path)!r}, 'w', driver='GTiff', count=1, height=512, width=512, dtype='uint8',"
        " tiled=True, blockxsize=64, blockysize=64, sparse_ok=True)\n"
        "sink.close()  # the header is on the disk, no block is\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    refused(path, "blocks are all absent")


def test_an_unfinished_raster_of_ours_is_a_leftover(tmp_path: Path) -> None:
    path = tiled(tmp_path / "a.tif")
    with rasterio.open(path, "r+") as sink:
        sink.update_tags(SEAWALL_WRITER="seawall")
    refused(path, "leftover of a killed writer")


@pytest.mark.parametrize("size", [10, 100 * 2**20])
def test_a_writer_killed_at_any_time_leaves_no_file_under_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    code = (
        "import numpy as np, sys\nfrom pathlib import Path\nfrom seawall.geo.raster import *\n"
        f"from seawall.geo import cog\ncog.IN_MEMORY_BYTES = {size}\n"
        f"with CogWriter(Path({str(tmp_path / 'a.tif')!r}), Grid(1024, 1024), 'float32', bands=('p',)) as sink:\n"
        "    sink.write(np.random.rand(1, 512, 1024).astype('float32'))\n"
        "    print('half', flush=True)\n    sys.stdin.read()\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stdin=subprocess.PIPE)
    assert child.stdout and child.stdout.readline() == b"half\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (tmp_path / "a.tif").exists()


def bomb(path: Path, width: int, height: int, bits: int = 8) -> Path:
    """A tiny TIFF that declares a huge picture in one strip."""
    payload = zlib.compress(b"\0" * 1000)
    entries = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, bits), (259, 3, 1, 8), (262, 3, 1, 1),
        (273, 4, 1, 8), (277, 3, 1, 1), (278, 4, 1, height), (279, 4, 1, len(payload)),
    ]  # fmt: skip
    raw = b"II*\0" + struct.pack("<I", 8 + len(payload)) + payload + struct.pack("<H", len(entries))
    raw += b"".join(struct.pack("<HHII", *entry) for entry in entries) + struct.pack("<I", 0)
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize(
    ("width", "height", "match"),
    [(60000, 60000, "at most 2147483648 pixels"), (2**31, 1, "expected"), (0, 5, "expected"), (5, 0, "expected")],
)
def test_absurd_sizes_are_refused_before_allocation(tmp_path: Path, width: int, height: int, match: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(bomb(tmp_path / "a.tif", width, height), match)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


def test_budgets_for_bytes_and_blocks(tmp_path: Path) -> None:
    path = tiled(tmp_path / "a.tif")
    refused(path, "blocks of at most 5000 bytes, got 8192", limits=Limits(block_bytes=5000))
    refused(path, "at most 100000 bytes", limits=Limits(bytes=10**5))
    refused(path, "at most 1000 pixels", limits=Limits(pixels=1000))


def test_a_deflate_bomb_inside_a_block_cannot_outgrow_the_block(tmp_path: Path) -> None:
    raw = zlib.compress(b"\7" * 10**8, 9)
    entries = [
        (256, 4, 1, 64), (257, 4, 1, 64), (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1), (273, 4, 1, 8),
        (277, 3, 1, 1), (278, 4, 1, 64), (279, 4, 1, len(raw)),
    ]  # fmt: skip
    head = b"II*\0" + struct.pack("<I", 8 + len(raw)) + raw + struct.pack("<H", len(entries))
    tail = b"".join(struct.pack("<HHII", *entry) for entry in entries) + struct.pack("<I", 0)
    (tmp_path / "a.tif").write_bytes(head + tail)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(tmp_path / "a.tif", "bad block .row 0, column 0. of band 1 .it holds more than 4096 bytes")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


@pytest.mark.parametrize(
    "path",
    [
        "/vsicurl/https://example.org/a.tif",
        "/vsis3/bucket/a.tif",
        "/vsizip//etc/hosts.zip/a",
        "/vsistdin/",
        "/vsimem/a.tif",
        'NETCDF:"a.nc":x',
        "https://example.org/a.tif",
        "s3://bucket/a.tif",
        "file:///etc/passwd",
        "zip://a.zip!/b.tif",
        "GTIFF_DIR:1:a.tif",
        "HDF5:a.h5://x",
        "<VRTDataset/>",
        "a\0b.tif",
    ],
)
def test_only_plain_files_are_opened(path: str) -> None:
    refused(path, "expected")


def test_folders_missing_files_and_other_formats(tmp_path: Path) -> None:
    refused(tmp_path, "got a folder")
    refused(tmp_path / "none.tif", "got nothing there")
    (tmp_path / "a.tif").write_text("<!DOCTYPE html><html>404</html>")
    refused(tmp_path / "a.tif", "an HTML page")
    tiled(tmp_path / "b.tif")
    (tmp_path / "a.vrt").write_text(
        f'<VRTDataset rasterXSize="300" rasterYSize="300"><VRTRasterBand dataType="UInt16" band="1"><SimpleSource>'
        f"<SourceFilename>{tmp_path / 'b.tif'}</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    refused(tmp_path / "a.vrt", "expected a raster of format GTiff")
    os.mkfifo(tmp_path / "pipe.tif")
    refused(tmp_path / "pipe.tif", "regular file")


def test_a_sidecar_cannot_change_what_a_raster_says(tmp_path: Path) -> None:
    path = tiled(tmp_path / "a.tif")
    Path(f"{path}.aux.xml").write_text(
        '<PAMDataset><PAMRasterBand band="1"><NoDataValue>7</NoDataValue></PAMRasterBand></PAMDataset>'
    )
    assert read_raster(path).nodata is None


def test_pixel_types_that_have_no_rule(tmp_path: Path) -> None:
    tiled(tmp_path / "c.tif", NOISE.astype(np.complex64))
    refused(tmp_path / "c.tif", "complex64 pixels")
    tiled(tmp_path / "l.tif", NOISE.astype(np.int64))
    refused(tmp_path / "l.tif", "int64 pixels")
    for dtype in ("int8", "uint8", "int16", "uint32", "float64"):
        tiled(tmp_path / f"{dtype}.tif", (NOISE % 100).astype(dtype))
        assert read_raster(tmp_path / f"{dtype}.tif").data.dtype == np.float32


def test_ground_control_points_alone_are_no_grid(tmp_path: Path) -> None:
    points = [rasterio.control.GroundControlPoint(r, c, 10 + c / 100, 50 - r / 100) for r in (0, 9) for c in (0, 9)]
    tiled(tmp_path / "a.tif", gcps=points, crs="EPSG:4326")
    refused(tmp_path / "a.tif", "only ground control points")


def test_a_transform_without_area(tmp_path: Path) -> None:
    tiled(tmp_path / "a.tif", transform=Affine(10, 0, 0, 10, 0, 0), crs="EPSG:32631")
    refused(tmp_path / "a.tif", "expected pixels with an area")


def test_a_file_replaced_during_the_run(tmp_path: Path) -> None:
    path = tiled(tmp_path / "a.tif")
    with open_raster(path) as source:
        source.read((0, 0, 9, 9))
        time.sleep(0.01)
        tiled(tmp_path / "b.tif")
        (tmp_path / "b.tif").replace(path)
        with pytest.raises(ImageryError, match="got a changed one"):
            source.read((0, 0, 9, 9))


def test_an_all_nodata_raster_is_a_valid_empty_one(tmp_path: Path) -> None:
    write_cog(tmp_path / "a.tif", np.full((2, 40, 40), -9999, np.int16), Grid(40, 40), bands=("a", "b"), nodata=-9999)
    assert not read_raster(tmp_path / "a.tif").seen.any()


@pytest.mark.parametrize("staged", [False, True])
def test_a_full_disk_leaves_the_earlier_file_and_no_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, staged: bool
) -> None:
    path = tmp_path / "a.tif"
    write_cog(path, np.ones((8, 8), np.uint8), Grid(8, 8), bands=("x",))
    earlier = path.read_bytes()
    if staged:
        monkeypatch.setattr(cog, "IN_MEMORY_BYTES", 0)
    noise = np.random.default_rng(0).random((1, 1024, 1024), dtype=np.float32)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, hard))
    try:
        with pytest.raises(ImageryError, match=r"a\.tif: expected .*(space|write)"):
            write_cog(path, noise, Grid(1024, 1024), bands=("p",))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == earlier
    assert [p.name for p in tmp_path.iterdir()] == ["a.tif"]


def test_no_space_left_is_said_plainly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cog.rasterio.shutil, "copy", full)
    with pytest.raises(ImageryError, match="got a full disk; free space"):
        write_cog(tmp_path / "a.tif", np.ones((8, 8), np.uint8), Grid(8, 8), bands=("x",))
    assert not list(tmp_path.iterdir())


def test_an_interrupted_writer_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), CogWriter(tmp_path / "a.tif", Grid(8, 8), "uint8", bands=("x",)) as sink:
        sink.write(np.ones((8, 8), np.uint8))
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_a_file_stands_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(ImageryError, match="check the disk"):
        write_cog(tmp_path / "out" / "a.tif", np.ones((8, 8), np.uint8), Grid(8, 8), bands=("x",))


def test_pieces_must_fit_the_raster(tmp_path: Path) -> None:
    with pytest.raises(ImageryError, match="expected 8x8 pixels"):
        write_cog(tmp_path / "a.tif", np.ones((8, 9), np.uint8), Grid(8, 8), bands=("x",))
    with pytest.raises(ImageryError, match="expected 2 bands"):
        write_cog(tmp_path / "a.tif", np.ones((3, 8, 8), np.uint8), Grid(8, 8), bands=("x", "y"))
    with (
        pytest.raises(ImageryError, match="clip them"),
        CogWriter(tmp_path / "a.tif", Grid(8, 8), "uint8", bands=("x",)) as sink,
    ):
        sink.write(np.ones((4, 4), np.uint8), 6, 0)
    assert not list(tmp_path.iterdir())

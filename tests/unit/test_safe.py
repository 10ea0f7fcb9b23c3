"""Sentinel-2 products made by hand: bands, offsets and grids come out as the metadata says."""

import hashlib
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from safe_product import OFFSETS, TRUTH, image, product
from seawall.errors import ImageryError, RadiometryError
from seawall.geo.radiometry import detect_unit, scale_for, to_physical
from seawall.geo.raster import read_raster
from seawall.imagery import safe
from seawall.imagery.safe import open_safe, write_stack


def test_a_product_is_read_in_reflectance_once(tmp_path: Path) -> None:
    made = open_safe(product(tmp_path))
    assert (made.level, made.baseline, made.bands) == ("L2A", "05.09", ("B03", "B08", "B11"))
    assert (made.quantification, made.offset) == (10000, -1000)
    raster = made.read(("green", "B11"))
    assert raster.bands == ("B03", "B11") and raster.grid.gsd_m() == 10
    assert not raster.seen[0, 0] and raster.seen.sum() == 24 * 24 - 1
    scale = scale_for(detect_unit(raster.data, raster.seen, raster.bands, made.hints), made.hints)
    physical = to_physical(raster.data, raster.seen, scale, "reflectance")
    np.testing.assert_allclose(physical[0][raster.seen], TRUTH[0][raster.seen], atol=6e-5)
    coarse = TRUTH[2, ::2, ::2].repeat(2, 0).repeat(2, 1)
    np.testing.assert_allclose(physical[1][raster.seen], coarse[raster.seen], atol=6e-5)


def test_a_product_before_the_offset_has_none(tmp_path: Path) -> None:
    made = open_safe(product(tmp_path, "02.14", ""))
    assert made.offset == 0
    raster = made.read(("B08",))
    assert scale_for(detect_unit(raster.data, raster.seen, raster.bands, made.hints), made.hints).offset == 0


def test_a_window_on_odd_pixels_equals_the_whole(tmp_path: Path) -> None:
    made = open_safe(product(tmp_path))
    whole = made.read()
    part = made.read(window=(3, 5, 10, 7))
    np.testing.assert_array_equal(part.data, whole.data[:, 3:13, 5:12])
    assert part.grid.same_as(whole.grid.window(3, 5, 10, 7))


def test_coarse_bands_alone_keep_their_pixels(tmp_path: Path) -> None:
    assert open_safe(product(tmp_path)).read(("B11",)).grid.gsd_m() == 20


def test_a_zip_is_unpacked_beside_and_only_once(tmp_path: Path) -> None:
    folder = product(tmp_path / "made")
    archive = tmp_path / "product.zip"
    with zipfile.ZipFile(archive, "w") as sink:
        sink.writestr(f"{folder.name}/INSPIRE.xml", "<a/>")
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                sink.write(path, f"{folder.name}/{path.relative_to(folder)}")
    made = open_safe(archive)
    assert made.path == tmp_path / "product" / folder.name
    assert not (made.path / "INSPIRE.xml").exists()
    np.testing.assert_array_equal(open_safe(archive).read().data, open_safe(folder).read().data)


def test_bands_are_stacked_with_their_scale(tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    write_stack(
        open_safe(product(tmp_path)), tmp_path / "s.tif", ("B03", "B11"), lambda done, of: steps.append((done, of))
    )
    raster = read_raster(tmp_path / "s.tif")
    assert (raster.bands, raster.dtype, raster.nodata) == (("B03", "B11"), "uint16", 0)
    assert raster.scales == (1e-4, 1e-4) and raster.offsets == (-0.1, -0.1)
    assert not raster.seen[0, 0] and steps == [(1, 1)]


def test_a_missing_band_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageryError, match="got none of B12"):
        open_safe(product(tmp_path)).read(("B03", "B12"))


def test_two_granules_need_a_choice(tmp_path: Path) -> None:
    product(tmp_path)
    folder = product(tmp_path, granule="L2A_T33TUG")
    with pytest.raises(ImageryError, match="got L2A_T33TTG, L2A_T33TUG; choose one"):
        open_safe(folder)
    assert open_safe(folder, granule="L2A_T33TUG").granule == "L2A_T33TUG"
    with pytest.raises(ImageryError, match="expected granule nowhere"):
        open_safe(folder, granule="nowhere")


def test_an_unsaid_offset_is_not_guessed(tmp_path: Path) -> None:
    with pytest.raises(RadiometryError, match=r"offset that baseline 04\.00 brings, got no ADD_OFFSET"):
        open_safe(product(tmp_path, "04.00", ""))


def test_bands_of_other_ground_are_refused(tmp_path: Path) -> None:
    folder = product(tmp_path)
    path = next(folder.rglob("*B08_10m.tif"))
    image(path, np.ones((24, 24)), 10, shift=5)
    with pytest.raises(ImageryError, match="shifted by"):
        open_safe(folder).read()


@pytest.mark.parametrize(
    "text",
    [
        '<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>',
        '<!DOCTYPE a SYSTEM "file:///etc/passwd"><a/>',
        '<!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;&b;">]><a>&c;</a>',
        "<a><b></a>",
        "",
    ],
)
def test_hostile_metadata_is_refused(tmp_path: Path, text: str) -> None:
    folder = product(tmp_path)
    (folder / "MTD_MSIL2A.xml").write_text(text)
    with pytest.raises(ImageryError, match=r"expected (plain metadata|metadata in XML)"):
        open_safe(folder)


def test_a_link_out_of_the_product_is_refused(tmp_path: Path) -> None:
    folder = product(tmp_path)
    path = next(folder.rglob("*B08_10m.tif"))
    path.rename(tmp_path / "elsewhere.tif")
    path.symlink_to(tmp_path / "elsewhere.tif")
    with pytest.raises(ImageryError, match="got a link out of it"):
        open_safe(folder)


def test_what_is_no_product(tmp_path: Path) -> None:
    with pytest.raises(ImageryError, match="expected a SAFE folder, got none"):
        open_safe(tmp_path)
    with pytest.raises(ImageryError, match="no such folder"):
        open_safe(tmp_path / "none")
    folder = product(tmp_path)
    for path in folder.rglob("*.tif"):
        path.unlink()
    with pytest.raises(ImageryError, match="expected band images"):
        open_safe(folder)


NAMES = {"MD5": "md5", "SHA3-256": "sha3_256", "SHA-256": "sha256"}


def manifest(folder: Path, name: str = "MD5") -> Path:
    """List every file of a product with its checksum, as the ground segment does."""
    listed = ""
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest = hashlib.new(NAMES[name], path.read_bytes()).hexdigest()
        listed += (
            f'<dataObject ID="x"><byteStream mimeType="a/b" size="{path.stat().st_size}"><fileLocation locatorType="URL" '
            f'href="./{path.relative_to(folder).as_posix()}"/><checksum checksumName="{name}">{digest.upper()}</checksum>'
            "</byteStream></dataObject>"
        )
    made = folder / "manifest.safe"
    head = '<xfdu:XFDU xmlns:xfdu="urn:ccsds:schema:xfdu:1"><dataObjectSection>'
    made.write_text(f"{head}{listed}</dataObjectSection></xfdu:XFDU>")
    return made


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 4
    path.write_bytes(raw)


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_file_that_is_used_is_held_against_the_manifest(tmp_path: Path, name: str) -> None:
    folder = product(tmp_path)
    manifest(folder, name)
    whole = open_safe(folder).read()
    nir = next(folder.rglob("*B08_10m.tif"))
    flip(nir)
    made = open_safe(folder)
    np.testing.assert_array_equal(made.read(("B03",)).data[0], whole.data[0])
    for use in (
        made.read,
        lambda: made.read(("B08",), (0, 0, 2, 2)),
        made.grid,
        lambda: write_stack(made, tmp_path / "s.tif"),
    ):
        with pytest.raises(
            ImageryError, match=rf"B08_10m.tif: expected {name} [0-9a-f]{{16}}... as manifest.safe says"
        ):
            use()
    assert not (tmp_path / "s.tif").exists()


def test_metadata_is_held_against_the_manifest(tmp_path: Path) -> None:
    folder = product(tmp_path)
    manifest(folder)
    text = (folder / "MTD_MSIL2A.xml").read_text()
    (folder / "MTD_MSIL2A.xml").write_text(text.replace(">-1000<", ">-1001<"))
    with pytest.raises(ImageryError, match=r"MTD_MSIL2A.xml: expected MD5"):
        open_safe(folder)


def test_a_manifest_comes_out_of_the_zip_and_an_unknown_hash_is_named(tmp_path: Path) -> None:
    folder = product(tmp_path / "made")
    manifest(folder)
    flip(next(folder.rglob("*B11_20m.tif")))
    archive = tmp_path / "product.zip"
    with zipfile.ZipFile(archive, "w") as sink:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            sink.write(path, f"{folder.name}/{path.relative_to(folder)}")
    with pytest.raises(ImageryError, match="B11_20m"):
        open_safe(archive).read()
    listed = folder / "manifest.safe"
    listed.write_text(listed.read_text().replace("MD5", "CRC-8"))
    with pytest.raises(ImageryError, match=r"expected a checksum of MD5, .* got 'CRC-8' for ./GRANULE"):
        open_safe(folder)


def test_a_band_is_hashed_once_however_many_windows_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = product(tmp_path)
    manifest(folder)
    made = open_safe(folder)
    made.read(("B03",))
    monkeypatch.setattr(safe.hashlib, "file_digest", lambda *_: pytest.fail("hashed again"))
    made.read(("B03",), (0, 0, 2, 2))


@pytest.mark.parametrize("text", ["minus 1000", "nan", "inf"])
def test_an_offset_that_is_no_number_is_a_radiometry_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(RadiometryError, match="expected a number as offset"):
        open_safe(product(tmp_path, offsets=OFFSETS.replace("-1000", text)))
    folder = product(tmp_path / "q")
    path = folder / "MTD_MSIL2A.xml"
    path.write_text(path.read_text().replace(">10000<", f">{text}<"))
    with pytest.raises(RadiometryError, match="expected a number as quantification value"):
        open_safe(folder)


def test_a_tar_is_no_product(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "p.tar", "w") as sink:
        link = tarfile.TarInfo("p.SAFE/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        sink.addfile(link)
    with pytest.raises(ImageryError, match="expected a SAFE folder or a zip of one"):
        open_safe(tmp_path / "p.tar")

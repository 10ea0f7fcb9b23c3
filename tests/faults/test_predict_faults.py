"""A scene that cannot be mapped says why, nothing unfinished has a final name, and a second run takes up the first."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from torch import nn

from seawall.errors import ImageryError, ModelError, RadiometryError, RunError, UsageError
from seawall.geo.radiometry import Hints
from seawall.geo.raster import Grid, write_cog
from seawall.inference.guarantee import Guarantee
from seawall.inference.output_buffer import OutputBuffer
from seawall.inference.predict import predict_many, predict_scene
from tiny import PixelModel

BANDS = ("B03", "B08")
TALL = Grid(1300, 96, Affine(10, 0, 500000, 0, -10, 5000000), "EPSG:32633")


def numbers(grid=TALL):
    rng = np.random.default_rng(0)
    wet = np.add.outer(np.arange(grid.height), np.arange(grid.width)) % 60 < 25
    image = np.stack([np.where(wet, 800, 1000), np.where(wet, 200, 3000)])
    return (image + rng.normal(0, 50, image.shape)).clip(1, 9999).astype(np.uint16)


def write_scene(path, data=None, grid=TALL, nodata=0, **settings):
    write_cog(path, numbers(grid) if data is None else data, grid, bands=BANDS, nodata=nodata, **settings)
    return path


def products(folder):
    return sorted(p.name for p in folder.iterdir() if not p.name.startswith(".")) if folder.exists() else []


def interrupt_after(tiles):
    def progress(done, total, scene):
        if done >= tiles:
            raise KeyboardInterrupt

    return progress


@pytest.fixture
def scene(tmp_path):
    return write_scene(tmp_path / "a.tif")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def test_wrong_bands_class_and_unit_are_refused_before_any_work(tmp_path, out, scene):
    model = PixelModel()
    other = tmp_path / "other.tif"
    write_cog(other, numbers(), TALL, bands=("B03", "B11"), nodata=0)
    with pytest.raises(ImageryError, match=r"other.tif: expected the bands B03, B08 .* got B03, B11 without B08"):
        predict_scene(model, other, out)
    with pytest.raises(UsageError, match="class: expected one of land, water, got 'river'"):
        predict_scene(model, scene, out, klass="river")
    with pytest.raises(UsageError, match="a name for each of the 2 bands"):
        predict_scene(model, scene, out, bands=("B03",))
    with pytest.raises(RadiometryError, match=r"a.tif: .*expected gamma0_db"):
        predict_scene(PixelModel(unit="gamma0_db"), scene, out)
    with pytest.raises(RadiometryError, match="metadata says"):
        predict_scene(model, scene, out, hints=Hints(offset=-0.1, gain=1e-4))
    assert model.calls == 0
    assert products(out) == []


def test_bands_without_names_must_be_named(tmp_path, out):
    plain = tmp_path / "plain.tif"
    write_cog(plain, numbers(), TALL, bands=("", ""), nodata=0)
    with pytest.raises(ImageryError, match=r"got band1, band2 .*name the bands"):
        predict_scene(PixelModel(), plain, out)


def test_two_bands_of_one_name_are_refused(tmp_path, out):
    double = tmp_path / "double.tif"
    write_cog(double, numbers()[[0, 1, 1]], TALL, bands=("B03", "NIR", "B08"), nodata=0)
    with pytest.raises(ImageryError, match="expected one band B08, got 2"):
        predict_scene(PixelModel(), double, out)


def test_damaged_weights_and_wrong_outputs_are_refused(scene, out):
    broken = PixelModel()
    with torch.no_grad():
        broken.gain.fill_(float("nan"))
    with pytest.raises(ModelError, match="expected finite weights"):
        predict_scene(broken, scene, out)

    class Overflow(PixelModel):
        def forward(self, image):
            return super().forward(image) * float("inf")

    with pytest.raises(ModelError, match="finite probabilities"):
        predict_scene(Overflow(), scene, out)

    class Small(PixelModel):
        def forward(self, image):
            return super().forward(image)[:, :, ::2, ::2]

    with pytest.raises(ModelError, match=r"expected logits of shape"):
        predict_scene(Small(), scene, out)
    with pytest.raises(ModelError, match="ModelSpec"):
        predict_scene(nn.Identity(), scene, out)
    assert products(out) == []
    assert not list(out.glob(".*.part"))


def test_a_scene_without_a_seen_pixel_is_an_empty_map(tmp_path, out):
    model = PixelModel()
    empty = write_scene(tmp_path / "empty.tif", np.zeros((2, 1300, 96), np.uint16))
    result = predict_scene(model, empty, out)
    assert model.calls == 0
    assert (result.seen_share, result.area_km2, result.share, result.unsure_share) == (0, 0, None, None)
    assert any("nothing in the scene is seen" in flag for flag in result.flags)
    with rasterio.open(out / "empty.class.tif") as source:
        assert (source.read(1) == 255).all()


def test_pixels_that_are_not_finite_are_unseen(tmp_path, out):
    data = (numbers() / 10000).astype(np.float32)
    data[0, 100:200] = np.nan
    data[1, 300:310] = np.inf
    result = predict_scene(PixelModel(), write_scene(tmp_path / "nan.tif", data, nodata=None), out)
    with rasterio.open(out / "nan.class.tif") as source:
        unseen = source.read(1) == 255
    assert unseen[100:200].all()
    assert unseen[300:310].all()
    assert unseen.sum() == 110 * 96
    assert result.seen_share == pytest.approx(1 - 110 / 1300)


def test_a_missing_nodata_value_is_flagged(tmp_path, out):
    result = predict_scene(PixelModel(), write_scene(tmp_path / "b.tif", nodata=None), out)
    assert any("no nodata value" in flag for flag in result.flags)


def test_a_bad_block_names_itself_and_leaves_nothing(tmp_path, out):
    scene = write_scene(tmp_path / "bad.tif", grid=Grid(1300, 600, TALL.transform, TALL.crs))
    with rasterio.open(scene) as source:
        at = int(source.get_tag_item("BLOCK_OFFSET_1_2", "TIFF", bidx=1))
    data = bytearray(scene.read_bytes())
    data[at : at + 40] = bytes(40)
    scene.write_bytes(data)
    with pytest.raises(ImageryError, match=r"bad.tif: expected readable pixels, got bad block"):
        predict_scene(PixelModel(), scene, out)
    assert products(out) == []
    assert not list(out.glob(".*.part"))


def test_a_scene_that_is_replaced_meanwhile_is_given_up(scene, out):
    def progress(done, total, name):
        os.utime(scene, (1, 1))

    with pytest.raises(ImageryError, match="expected the file to stay"):
        predict_scene(PixelModel(), scene, out, tile=64, overlap=32, progress=progress)
    assert products(out) == []


def test_an_interrupted_run_is_taken_up(scene, tmp_path, out):
    model = PixelModel()
    with pytest.raises(KeyboardInterrupt):
        predict_scene(model, scene, out, tile=64, overlap=32, progress=interrupt_after(50))
    assert products(out) == []
    done = model.calls
    seen = []
    taken_up = predict_scene(model, scene, out, tile=64, overlap=32, progress=lambda *said: seen.append(said))
    fresh = PixelModel()
    whole = predict_scene(fresh, scene, tmp_path / "fresh", tile=64, overlap=32)
    assert taken_up.digests == whole.digests
    assert taken_up.area_km2 == whole.area_km2
    assert seen[-1][0] == seen[-1][1] < fresh.calls
    assert model.calls < done + fresh.calls
    assert not list(out.glob(".*.part"))


@pytest.mark.parametrize("damage", ["pixels", "ledger", "torn", "settings", "short"])
def test_what_is_not_whole_or_of_another_run_is_written_again(scene, tmp_path, out, damage):
    with pytest.raises(KeyboardInterrupt):
        predict_scene(PixelModel(), scene, out, tile=64, overlap=32, progress=interrupt_after(70))
    part = out / ".a.part"
    ledger = part / "ledger.jsonl"
    if damage == "pixels":
        raw = part / "probability.raw"
        data = bytearray(raw.read_bytes())
        data[5] ^= 1
        raw.write_bytes(data)
    elif damage == "ledger":
        ledger.write_text(ledger.read_text().replace('"digest": "', '"digest": "0'))
    elif damage == "torn":
        ledger.write_text(ledger.read_text()[:-20])
    elif damage == "short":
        os.truncate(part / "class.raw", 1000)
    promised = Guarantee(unsure=(0.1, 0.9)) if damage == "settings" else Guarantee()
    got = predict_scene(PixelModel(), scene, out, tile=64, overlap=32, guarantee=promised)
    whole = predict_scene(PixelModel(), scene, tmp_path / "fresh", tile=64, overlap=32, guarantee=promised)
    assert got.digests == whole.digests


def test_a_damaged_product_is_made_again(scene, out):
    first = predict_scene(PixelModel(), scene, out)
    path = out / "a.water.tif"
    data = bytearray(path.read_bytes())
    data[-10] ^= 255
    path.write_bytes(data)
    again = predict_scene(PixelModel(), scene, out)
    assert not again.reused
    assert again.digests == first.digests
    (out / "a.json").write_text("{")
    assert not predict_scene(PixelModel(), scene, out).reused


CHILD = """
import sys, time, torch
torch.set_num_threads(1)
sys.path.insert(0, {here!r})
from tiny import PixelModel
from seawall.inference.predict import predict_scene
predict_scene(PixelModel(), {scene!r}, {out!r}, tile=64, overlap=32, progress=lambda *said: time.sleep(0.02))
"""


def test_a_killed_run_leaves_nothing_under_the_final_name_and_is_taken_up(scene, tmp_path, out):
    code = textwrap.dedent(CHILD).format(here=str(Path(__file__).parents[1]), scene=str(scene), out=str(out))
    child = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE)
    ledger = out / ".a.part" / "ledger.jsonl"
    try:
        limit = time.monotonic() + 60
        while not ledger.exists() and time.monotonic() < limit and child.poll() is None:
            time.sleep(0.02)
        assert child.poll() is None, child.stderr.read().decode()
        child.send_signal(signal.SIGKILL)
    finally:
        child.kill()
        child.wait()
        child.stderr.close()
    assert ledger.exists()
    assert products(out) == []
    assert (out / ".lock").exists()
    seen = []
    got = predict_scene(PixelModel(), scene, out, tile=64, overlap=32, progress=lambda *said: seen.append(said))
    whole = predict_scene(PixelModel(), scene, tmp_path / "fresh", tile=64, overlap=32)
    assert got.digests == whole.digests
    assert any("run that died" in flag for flag in got.flags)
    assert seen[-1][1] < whole.tiles


def test_two_runs_on_one_folder(scene, out):
    def second(done, total, name):
        predict_scene(PixelModel(), scene, out)

    with pytest.raises(RunError, match="held by process"):
        predict_scene(PixelModel(), scene, out, progress=second)
    assert not predict_scene(PixelModel(), scene, out).reused


def test_a_full_disk_is_said_and_cleaned_up(scene, out, monkeypatch):
    first = predict_scene(PixelModel(), scene, out)

    def full(*where):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("seawall.inference.output_buffer._reserve", full)
        with pytest.raises(RunError, match=r"expected room for the products, got a full disk .*and run again"):
            predict_scene(PixelModel(), scene, out, resume=False)
        assert not list(out.glob(".*"))

    def full_later(*where):
        if (out / ".a.part" / "ledger.jsonl").exists():
            full()

    with monkeypatch.context() as patch:
        patch.setattr("seawall.inference.output_buffer.os.fsync", full_later)
        with pytest.raises(RunError, match=r"a full disk .*what is finished is kept"):
            predict_scene(PixelModel(), scene, out, resume=False)
    assert (out / ".a.part").exists()
    assert predict_scene(PixelModel(), scene, out).reused  # the older map is still there, and whole
    assert predict_scene(PixelModel(), scene, out, resume=False).digests == first.digests
    assert not list(out.glob(".*"))


def test_a_file_that_cannot_grow_is_said_and_cleaned_up(scene, out):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises((RunError, ImageryError), match=r"File too large|expected"):
            predict_scene(PixelModel(), scene, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert products(out) == []
    assert not list(out.glob(".*.part"))


def test_a_folder_that_cannot_be_is_said(scene, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="expected a folder that can be written"):
        predict_scene(PixelModel(), scene, tmp_path / "file")


def test_out_of_memory_halves_the_batch_once(scene, out):
    class Hungry(PixelModel):
        fits = 2

        def forward(self, image):
            if len(image) > self.fits:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().forward(image)

    fed = predict_scene(Hungry(), scene, out, tile=64, overlap=32, batch=4)
    assert fed.area_km2 == predict_scene(PixelModel(), scene, out, tile=64, overlap=32).area_km2
    starving = Hungry()
    starving.fits = 1
    with pytest.raises(RunError, match=r"batch of 2 tiles of 64x64 pixels .*smaller --tile or --batch"):
        predict_scene(starving, scene, out, tile=64, overlap=32, batch=4, resume=False)
    starving.fits = 0
    with pytest.raises(RunError, match="out of memory"):
        predict_scene(starving, scene, out, tile=64, overlap=32, batch=1, resume=False)


def test_another_error_of_the_network_is_not_taken_for_memory(scene, out):
    class Wrong(PixelModel):
        def forward(self, image):
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        predict_scene(Wrong(), scene, out)
    report = predict_many(Wrong(), [scene], out)
    assert "RuntimeError: mat1" in report.failed[0][1]


def test_a_buffer_takes_windows_in_any_order(tmp_path):
    buffer = OutputBuffer(tmp_path / "c", "k", ("a", "b"), 40, 30)
    assert buffer.open() == {}
    rng = np.random.default_rng(0)
    whole = {layer: rng.integers(0, 255, (40, 30), dtype=np.uint8) for layer in ("a", "b")}
    windows = [(20, 10, 20, 20), (0, 0, 20, 10), (20, 0, 20, 10), (0, 10, 20, 20)]
    for row, col, height, width in windows:
        at = (slice(row, row + height), slice(col, col + width))
        buffer.write((row, col, height, width), {k: v[at] for k, v in whole.items()}, {"n": row})
    assert set(buffer.open()) == set(windows)
    for layer, pixels in whole.items():
        assert (np.concatenate([rows for _, rows in buffer.rows(layer, 7)]) == pixels).all()
    assert OutputBuffer(tmp_path / "c", "other", ("a", "b"), 40, 30).open() == {}
    assert json.loads((tmp_path / "c" / "canvas.json").read_text())["key"] == "other"


MEMORY = """
import resource, sys, torch
torch.set_num_threads(1)
sys.path.insert(0, {here!r})
from tiny import PixelModel
from seawall.inference.predict import predict_scene
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
predict_scene(PixelModel(), {small!r}, {out!r}, tile=256)
before = peak()
predict_scene(PixelModel(), {tall!r}, {out!r}, tile=256)
print((peak() - before) / 1024)
"""


def test_memory_does_not_grow_with_the_scene(tmp_path, out):
    paths = {}
    for name, height in (("small", 2048), ("tall", 20480)):
        grid = Grid(height, 512, TALL.transform, TALL.crs)
        paths[name] = str(
            write_scene(tmp_path / f"{name}.tif", np.tile(numbers(Grid(1024, 512)), (1, height // 1024, 1)), grid)
        )
    code = textwrap.dedent(MEMORY).format(here=str(Path(__file__).parents[1]), out=str(out), **paths)
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    read_whole = 20480 * 512 * 2 * 4 / 2**20
    assert float(done.stdout) < read_whole
    assert float(done.stdout) < 48

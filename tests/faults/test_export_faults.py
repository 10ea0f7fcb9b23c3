"""Layers of two maps are never presented as one, whenever the work is cut short, and a full disk costs no prediction."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine

from seawall.errors import RunError
from seawall.geo.cog import FULL_DISK
from seawall.geo.raster import Grid, write_cog
from seawall.inference.export import read_finished
from seawall.inference.predict import predict_scene
from tiny import PixelModel

GRID = Grid(70, 60, Affine(10, 0, 500000, 0, -10, 5000000), "EPSG:32633")


@pytest.fixture
def scene(tmp_path):
    data = np.random.default_rng(0).random((2, 70, 60), dtype=np.float32) * 0.4
    write_cog(tmp_path / "a.tif", data, GRID, bands=("B03", "B08"), nodata=float("nan"))
    return tmp_path / "a.tif"


def layers(out):
    """Return the key that each layer in a folder was made with."""
    found = {}
    for path in sorted(out.glob("a.*.tif")):
        with rasterio.open(path) as layer:
            found[path.name] = layer.tags()["SEAWALL_KEY"]
    return found


def cut_after(steps, work):
    """Do some work in a child that dies at the given rename; return whether it died there."""
    child = os.fork()
    if child == 0:
        try:
            count = 0
            rename = Path.replace

            def counted(self, target):
                nonlocal count
                if str(target).endswith((".tif", "a.json")) and "products/a." in f"{self}{target}":
                    if count == steps:
                        os._exit(9)
                    count += 1
                return rename(self, target)

            Path.replace = counted
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


@pytest.mark.parametrize("older", [False, True], ids=["first map", "older map there"])
def test_a_kill_between_any_two_renames_never_mixes_two_maps(scene, tmp_path, older):
    out = tmp_path / "out"
    if older:
        first = predict_scene(PixelModel(gain=5.0), scene, out)
    fresh = predict_scene(PixelModel(gain=20.0), scene, tmp_path / "fresh")
    kills = 0
    for step in range(40):
        home = tmp_path / f"step{step}"
        if older:
            shutil.copytree(out, home)
        if not cut_after(step, lambda home=home: predict_scene(PixelModel(gain=20.0), scene, home)):
            break
        kills += 1
        found = layers(home)
        if (home / "a.json").exists():
            said = json.loads((home / "a.json").read_text())["result"]
            assert set(found.values()) == {said["key"]}, step
            assert set(found) == set(said["files"].values()), step
            assert read_finished(home, "a", said["key"]) is not None, step
        assert len(set(found.values())) <= 1, step  # not even without the JSON
        model = PixelModel(gain=20.0)
        again = predict_scene(model, scene, home)
        assert again.digests == fresh.digests
        assert model.calls <= (0 if step else 1)  # finished windows are reused
        assert not list(home.glob(".*.part"))
    assert kills >= (8 if older else 4)
    if older:
        assert read_finished(out, "a", first.key) is not None


def test_an_error_between_two_renames_puts_the_older_map_back(scene, tmp_path, monkeypatch):
    out = tmp_path / "out"
    first = predict_scene(PixelModel(gain=5.0), scene, out)
    rename = Path.replace

    def broken(self, target):
        if "products" in str(self) and "old" not in str(self) and str(target).endswith("uncertainty.tif"):
            raise OSError(28, "No space left on device")
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", broken)
        patch.setattr("seawall.geo.cog.Path.replace", broken)
        with pytest.raises(RunError, match="a full disk"):
            predict_scene(PixelModel(gain=20.0), scene, out)
    assert read_finished(out, "a", first.key) is not None
    assert set(layers(out).values()) == {first.key}


def test_a_map_of_another_class_leaves_no_layer_of_the_older_one(scene, tmp_path):
    predict_scene(PixelModel(), scene, tmp_path / "out", klass="water")
    predict_scene(PixelModel(), scene, tmp_path / "out", klass="land")
    assert sorted(layers(tmp_path / "out")) == ["a.class.tif", "a.land.tif", "a.sets.tif", "a.uncertainty.tif"]


def test_a_full_disk_at_the_end_costs_no_prediction(scene, tmp_path, monkeypatch):
    out = tmp_path / "out"

    def full(self, *piece, **at):
        raise rasterio.errors.RasterioIOError("TIFFAppendToStrip:Seek error at scanline 1024")

    model = PixelModel()
    with monkeypatch.context() as patch:
        patch.setattr("rasterio.io.DatasetWriter.write", full)
        patch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(2**20, 2**20, 100))
        with pytest.raises(
            RunError, match=r"got a full disk with 0 MiB free; free about \d+ MiB; what is finished is k"
        ):
            predict_scene(model, scene, out)
    assert not list(out.glob("a.*"))
    calls = model.calls
    predict_scene(model, scene, out)
    assert model.calls == calls
    assert not list(out.glob(".*"))


def test_a_write_that_fails_on_a_disk_with_room_is_not_called_full(tmp_path, monkeypatch):
    def broken(self, *piece, **at):
        raise rasterio.errors.RasterioIOError("Write error at scanline 0")

    monkeypatch.setattr("rasterio.io.DatasetWriter.write", broken)
    with pytest.raises(Exception, match="Write error") as bad:
        write_cog(tmp_path / "a.tif", np.zeros((1, 70, 60), np.uint8), GRID, bands=("a",))
    assert FULL_DISK not in str(bad.value)


TMPFS = """
set -e
mkdir -p {disk}
mount -t tmpfs -o size={size} tmpfs {disk}
{python} - <<'END'
import json, sys, torch
torch.set_num_threads(1)
sys.path.insert(0, {here!r})
from tiny import PixelModel
from seawall.errors import SeawallError
from seawall.inference.predict import predict_scene
said = []
model = PixelModel()
for size in (1, 2):
    try:
        predict_scene(model, {scene!r}, {disk!r} + "/out")
    except SeawallError as bad:
        said.append(str(bad))
    if size == 1:
        import subprocess
        before = model.calls
        subprocess.run(["mount", "-o", "remount,size=64m", {disk!r}], check=True)
print(json.dumps([said, before, model.calls]))
END
"""


def test_a_disk_that_is_really_full_says_so_and_goes_on_after_room_was_made(tmp_path):
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a small disk")
    grid = Grid(1100, 1100, GRID.transform, GRID.crs)
    data = np.random.default_rng(0).random((2, 1100, 1100), dtype=np.float32) * 0.4
    write_cog(tmp_path / "a.tif", data, grid, bands=("B03", "B08"), nodata=float("nan"))
    here = str(Path(__file__).parents[1])
    code = TMPFS.format(
        disk=str(tmp_path / "disk"), size="6000k", python=sys.executable, here=here, scene=str(tmp_path / "a.tif")
    )
    done = subprocess.run(["unshare", "-rm", "sh", "-c", code], capture_output=True, text=True, check=False)
    if "mount:" in done.stderr:
        pytest.skip("needs the right to mount a small disk")
    assert done.returncode == 0, done.stderr
    said, before, after = json.loads(done.stdout.splitlines()[-1])
    assert len(said) == 1
    assert "got a full disk with" in said[0]
    assert "the same command goes on" in said[0]
    assert before == after > 0

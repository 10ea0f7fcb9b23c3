"""Bad input, through the command line: one clear line, the exit code as designed, and nothing that was there is lost.

The layers below have their own fault tests; here is what a person sees. Most cases run the command line in this process
(`cli`), because starting one takes seconds; `process` runs a real one, once per family.
"""

import errno
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine

from seawall.data.chips import ChipFolder
from seawall.io import RunLock
from seawall.models.water_index import WaterIndexThreshold
from seawall.models.weights import save_model
from seawall.recipe.recipe import read_recipe
from seawall.types import ModelSpec
from terminal import cli, contents, full_disk, process
from tiny import BANDS, SIZE, SMALL, SMALL_TRAINING, SPEC, broken_rasters, cut_off, marks, numbers, pair, save, scene


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights, a scene, pairs and the chips made from them; the tests leave them as they are."""
    root = tmp_path_factory.mktemp("bad-input")
    save_model(root / "ndwi.safetensors", WaterIndexThreshold("ndwi")(SPEC))
    scene(root / "scene.tif")
    for i in range(6):
        pair(root / "pairs", f"place{i}", f"chip{i}", seed=i)
    assert cli("curate", root / "pairs", "--out", root / "chips").code == 0
    return root


@pytest.fixture
def pairs(home: Path, tmp_path: Path) -> Path:
    """A copy of the good pairs, to put bad ones among."""
    return Path(shutil.copytree(home / "pairs", tmp_path / "pairs"))


# Rasters


def test_broken_scenes_are_listed_and_the_good_one_is_mapped(home: Path, tmp_path: Path) -> None:
    reasons = broken_rasters(tmp_path / "scenes")
    scene(tmp_path / "scenes/good.tif")
    done = process("predict", home / "ndwi.safetensors", tmp_path / "scenes", "--out", tmp_path / "maps")
    done.refused(3, "6 of 7|6 item")
    assert set(done.failed) == set(reasons)
    for name, word in reasons.items():
        assert re.search(f"expected .*{word}|{word}", done.failed[name]), done.failed[name]
    assert (tmp_path / "maps/good.class.tif").exists()
    assert {path.name.split(".")[0] for path in (tmp_path / "maps").glob("*.tif")} == {"good"}
    assert not [path for path in (tmp_path / "maps").rglob("*") if ".part" in path.name or path.name == ".lock"]


@pytest.mark.parametrize("name", ["empty", "truncated", "sparse", "killed", "oversized"])
def test_one_broken_scene_is_a_failure(home: Path, tmp_path: Path, name: str) -> None:
    word = broken_rasters(tmp_path)[name]
    cli("predict", home / "ndwi.safetensors", tmp_path / f"{name}.tif", "--out", tmp_path / "maps").refused(1, word)


def test_broken_chips_are_listed_and_the_good_ones_are_made(pairs: Path, tmp_path: Path) -> None:
    names = broken_rasters(pairs / "images/bad")
    for name in names:
        save(pairs / f"labels/bad/{name}.tif", marks(), dtype="uint8")
    done = process("curate", pairs, "--out", tmp_path / "chips", "--json")
    done.refused(3, "6 item")
    failed = {row["item"]: row["reason"] for row in json.loads(done.out)["failed"]}
    for name, word in names.items():
        assert word in failed[f"bad_{name}"], failed
    assert len(ChipFolder.open(tmp_path / "chips").rows) == 6


def test_nothing_but_broken_chips_is_a_failure(tmp_path: Path) -> None:
    for name in broken_rasters(tmp_path / "pairs/images/bad"):
        save(tmp_path / f"pairs/labels/bad/{name}.tif", marks(), dtype="uint8")
    cli("curate", tmp_path / "pairs", "--out", tmp_path / "chips").refused(1, "6 looked at|none")
    assert not (tmp_path / "chips/index.json").exists()


# Bands, units, offsets


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"bands": ("B03", "B11")}, "without B08"),
        ({"bands": ("x", "y")}, "bands B03, B08"),
        ({"bands": ()}, "name the bands"),
        ({"bands": ("B03", "green")}, "without B08|one band B03"),
        ({"dtype": "float32", "data": -12.0, "bands": ("VV", "VH")}, "without"),
        ({"dtype": "uint8", "data": 7}, "reflectance"),
        ({"tags": {"PROCESSING_BASELINE": "05.09"}, "offsets": True}, "offset"),
    ],
)  # fmt: skip
def test_a_scene_of_other_bands_or_unit_is_refused(
    home: Path, tmp_path: Path, change: dict[str, object], says: str
) -> None:
    more = dict(change)
    value, offset = more.pop("data", None), more.pop("offsets", False)
    path = save(
        tmp_path / "odd.tif",
        numbers() if value is None else np.full((2, SIZE, SIZE), value),
        **({"bands": BANDS} | more),
    )  # type: ignore[arg-type]
    if offset:
        with rasterio.open(path, "r+") as sink:
            sink.scales, sink.offsets = (1e-4, 1e-4), (-0.1, -0.1)
    cli("predict", home / "ndwi.safetensors", path, "--out", tmp_path / "maps").refused(1, says)
    assert not list((tmp_path / "maps").glob("*.tif"))


def test_another_order_of_bands_gives_the_same_map(home: Path, tmp_path: Path) -> None:
    save(tmp_path / "turned.tif", numbers()[::-1], bands=BANDS[::-1])
    for path in (home / "scene.tif", tmp_path / "turned.tif"):
        assert cli("predict", home / "ndwi.safetensors", path, "--out", tmp_path / path.stem).code == 0
    with (
        rasterio.open(tmp_path / "scene/scene.water.tif") as one,
        rasterio.open(tmp_path / "turned/turned.water.tif") as two,
    ):
        np.testing.assert_array_equal(one.read(), two.read())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"image_kw": {"bands": ("B03", "B11")}}, "bands"),
        ({"data": np.full((2, SIZE, SIZE), -12.0), "image_kw": {"dtype": "float32", "bands": ("VV", "VH")}}, "bands"),
        ({"data": numbers() // 20, "image_kw": {"dtype": "uint8"}}, "unit"),
        ({"image_kw": {"at": Affine(60, 0, 500000, 0, -60, 4000000)}, "label_kw": {"at": Affine(60, 0, 500000, 0, -60, 4000000)}}, "gsd_m"),
    ],
)  # fmt: skip
def test_a_mixed_dataset_is_refused_before_any_work(
    pairs: Path, tmp_path: Path, change: dict[str, object], says: str
) -> None:
    pair(pairs, "odd", "odd", **change)  # type: ignore[arg-type]
    cli("curate", pairs, "--out", tmp_path / "chips").refused(1, f"^error: {says}: expected")
    assert not (tmp_path / "chips/index.json").exists()


def test_an_offset_that_contradicts_the_numbers_fails_that_chip(pairs: Path, tmp_path: Path) -> None:
    pair(pairs, "odd", "odd", data=numbers() // 4)
    with rasterio.open(pairs / "images/odd/odd.tif", "r+") as sink:
        sink.scales, sink.offsets = (1e-4, 1e-4), (-0.1, -0.1)
    done = cli("curate", pairs, "--out", tmp_path / "chips")
    done.refused(3, "1 item")
    assert "offset" in done.failed["odd_odd"], done.out


# Pixels and labels


def test_pixels_that_are_not_numbers_are_unseen(home: Path, tmp_path: Path) -> None:
    data = numbers() / 1e4
    data[:, 5:9, 5:9] = np.nan
    data[0, 20, 20] = np.inf
    save(tmp_path / "holes.tif", data, dtype="float32", bands=BANDS)
    assert cli("predict", home / "ndwi.safetensors", tmp_path / "holes.tif", "--out", tmp_path / "maps").code == 0
    with rasterio.open(tmp_path / "maps/holes.class.tif") as source:
        unseen = source.read(1) == source.nodata
    assert unseen[5:9, 5:9].all() and unseen[20, 20] and unseen.sum() == 17
    pair(tmp_path / "pairs", "a", "holes", data=data, image_kw={"dtype": "float32"})
    assert cli("curate", tmp_path / "pairs", "--out", tmp_path / "chips").code == 0
    chip = ChipFolder.open(tmp_path / "chips").read("a_holes")
    assert np.isfinite(chip.image).all() and (~chip.seen).sum() == 17 and not (chip.valid & ~chip.seen).any()


def test_a_chip_without_data_is_skipped_with_its_reason(home: Path, pairs: Path, tmp_path: Path) -> None:
    pair(pairs, "blank", "blank", data=np.zeros((2, SIZE, SIZE)))
    done = cli("curate", pairs, "--out", tmp_path / "chips", "--json")
    assert done.code == 0, done.err
    assert "none" in json.loads(done.out)["table"][0]["reason"] and json.loads(done.out)["facts"]["made"] == 6
    save(tmp_path / "blank.tif", np.zeros((2, SIZE, SIZE)), bands=BANDS)
    assert cli("predict", home / "ndwi.safetensors", tmp_path / "blank.tif", "--out", tmp_path / "maps").code == 0
    with rasterio.open(tmp_path / "maps/blank.class.tif") as source:
        assert (source.read() == source.nodata).all()


def test_bad_labels_fail_their_chip_alone(pairs: Path, tmp_path: Path) -> None:
    pair(pairs, "bad", "shifted", label_kw={"at": Affine(10, 0, 500005, 0, -10, 4000000)})
    pair(pairs, "bad", "zone", label_kw={"crs": "EPSG:32632"})
    pair(pairs, "bad", "smaller", label=marks()[:, 1:])
    pair(pairs, "bad", "value", label=marks() * 3)
    pair(pairs, "bad", "none")
    (pairs / "labels/bad/none.tif").unlink()
    done = cli("curate", pairs, "--out", tmp_path / "chips")
    done.refused(3, "5 item")
    said = {
        "bad_shifted": "another one",
        "bad_zone": "another one",
        "bad_smaller": "32x32",
        "bad_value": "got 3",
        "bad_none": "label file",
    }
    assert set(done.failed) == set(said)
    for name, word in said.items():
        assert word in done.failed[name], done.failed[name]
    again = cli(
        "curate", pairs, "--out", tmp_path / "chips", "--label-map", "3=1", "--label-map", "0=0", "--label-map", "1=1"
    )
    assert again.code in (1, 3) and "Traceback" not in again.err


def dry(home: Path, folder: Path, places: int) -> Path:
    """Chips whose first places have no water."""
    for i in range(6):
        pair(folder / "pairs", f"place{i}", f"chip{i}", seed=i, label=marks() * (i >= places))
    assert cli("curate", folder / "pairs", "--out", folder / "chips").code == 0
    return folder / "chips"


def test_groups_without_water_have_a_defined_result(home: Path, tmp_path: Path) -> None:
    for places in (3, 6):
        chips = dry(home, tmp_path / str(places), places)
        trained = cli("train", chips, "--out", tmp_path / f"{places}/run", *SMALL_TRAINING, "--json")
        assert trained.code == 0, trained.err
        json.loads(trained.out, parse_constant=pytest.fail)
        done = cli("evaluate", home / "ndwi.safetensors", chips, "--out", tmp_path / f"{places}/rows", "--json")
        assert done.code == 0, done.err
        rows = {row["class"]: row for row in json.loads(done.out, parse_constant=pytest.fail)["table"]}
        if places == 6:
            assert rows["water"]["recall"] is None, "no water to find: undefined, neither 0 nor 1"
            assert rows["water"]["iou.pooled"] == 0.0, "water that is not there was found"


def test_a_run_on_dry_chips_ends_with_a_report(home: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "dry.toml"
    recipe.write_text(
        f'name = "dry"\n[data]\nsource = "{dry(home, tmp_path, 6)}"\n[[attacks]]\nname = "fgsm"\nthreats = ["linf 1% reflectance"]\n'
        '[[baselines]]\nname = "threshold"\nsettings = {index = "ndwi", rule = "otsu"}\n'
    )
    done = cli("run", recipe, "--out", tmp_path / "runs", *SMALL_TRAINING)
    assert done.code == 0, done.err
    assert "no water in 6 groups" in next((tmp_path / "runs").glob("dry-*/report.html")).read_text()
    recipe.write_text(recipe.read_text() + '[[noises]]\nname = "dilate"\nrates = [0.1]\n')
    cli("run", recipe, "--out", tmp_path / "runs", *SMALL_TRAINING).refused(1, "none changed")


# Recipes

RECIPES = {
    "typo": ('name = "x"\nsed = 1', "did you mean 'seed'"),
    "typo inside": ('name = "x"\n[data]\nsorce = "a"', "did you mean 'source'"),
    "type": ('name = "x"\nseed = "a"', "seed"),
    "range": ('name = "x"\n[split]\nval = 0.7\ntest = 0.6', "val"),
    "method": ('name = "x"\n[[attacks]]\nname = "fgms"\nthreats = ["linf 1% reflectance"]', "did you mean 'fgsm'"),
    "no unit": ('name = "x"\n[[attacks]]\nname = "pgd"\nthreats = ["linf 0.01"]', "unit"),
    "other unit": ('name = "x"\n[[attacks]]\nname = "pgd"\nthreats = ["linf 1 dB"]', "reflectance"),
    "setting": ('name = "x"\n[[noises]]\nname = "erode"\nrates = [0.1]\nsettings = {kernl = 3}', "did you mean 'kernel'"),
    "noise rate": ('name = "x"\n[[noises]]\nname = "erode"\nrates = [2.0]', "budget|share|1"),
    "no toml": ('name = "x', "expected TOML"),
    "no name": ("seed = 1", "name"),
    "objective": ('name = "x"\n[training.objective]\nname = "supervisd"', "did you mean 'supervised'"),
    "loss": ('name = "x"\n[training.objective]\nname = "supervised"\nsettings = {loss = "dise"}', "did you mean 'dice'"),
    "baseline": ('name = "x"\n[[baselines]]\nname = "threshold"\nsettings = {index = "ndvi"}', "ndwi"),
    "label rule": ('name = "x"\n[data]\nlabels = "ndwi > water"', "labels|rule"),
    "environment": ('name = "x"\n[data]\nsource = "$SEAWALL_NO_SUCH/chips"', "environment"),
}  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_a_wrong_recipe_is_refused_before_any_work(tmp_path: Path, name: str) -> None:
    text, says = RECIPES[name]
    (tmp_path / "r.toml").write_text(text)
    cli("run", tmp_path / "r.toml", "--out", tmp_path / "runs").refused(2, says)
    assert not [p for p in tmp_path.rglob("*") if p.suffix in (".tif", ".safetensors", ".jsonl")]


def test_a_data_section_that_cannot_be_met_is_refused(home: Path, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(f'name = "x"\n[data]\nsource = "{tmp_path}/nowhere"')
    cli("run", tmp_path / "r.toml", "--out", tmp_path / "runs").refused(1, "nowhere")
    (tmp_path / "r.toml").write_text(f'name = "x"\n[data]\nsource = "{home}/chips"\nbands = ["B11"]')
    cli("run", tmp_path / "r.toml", "--out", tmp_path / "runs").refused(2, "data.bands.*no effect")


# Weights


def pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps({"weight": [1.0]}))


def flipped(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-3] ^= 0x40
    path.write_bytes(raw)


def of_radar(path: Path) -> None:
    save_model(path, WaterIndexThreshold("vv")(ModelSpec(("VV", "VH"), ("land", "water"), "sigma0_db", 10.0)))


WEIGHTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (cut_off, "bytes|ends|truncated|safetensors"),
    "empty": (lambda path: path.write_bytes(b""), "safetensors|bytes"),
    "flipped": (flipped, "bytes of the file have changed"),
    "pickle": (pickled, "pickle"),
    "bands": (of_radar, "B03, B08"),
    "missing": (Path.unlink, "No such file"),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_that_cannot_be_trusted_are_refused_by_every_verb(home: Path, tmp_path: Path, name: str) -> None:
    spoil, says = WEIGHTS[name]
    path = tmp_path / "m.safetensors"
    shutil.copy(home / "ndwi.safetensors", path)
    spoil(path)
    out = tmp_path / "out"
    cli("evaluate", path, home / "chips", "--out", out).refused(1, says)
    cli("attack", path, home / "chips", "--threat", "linf 1% reflectance", "--method", "fgsm", "--out", out).refused(
        1, says
    )
    cli("predict", path, home / "scene.tif", "--out", out).refused(1, "VV" if name == "bands" else says)
    assert not contents(out) if out.exists() else True


def test_damaged_weights_through_a_process(home: Path, tmp_path: Path) -> None:
    shutil.copy(home / "ndwi.safetensors", tmp_path / "m.safetensors")
    flipped(tmp_path / "m.safetensors")
    process("evaluate", tmp_path / "m.safetensors", home / "chips", "--out", tmp_path / "out").refused(
        1, "bytes of the file have changed"
    )


# A full disk


def test_a_full_disk_while_curating_keeps_what_is_done(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process("curate", home / "pairs", "--out", tmp_path / "none", limit=900).refused(1, "File too large|space")
    real, left = os.fsync, [9]

    def full(handle: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        cli("curate", home / "pairs", "--out", tmp_path / "chips").refused(1, "No space left")
    assert cli("curate", home / "pairs", "--out", tmp_path / "chips").code == 0
    same = {name: digest for name, digest in contents(tmp_path / "chips").items() if name != "curate.json"}
    assert same == {name: digest for name, digest in contents(home / "chips").items() if name != "curate.json"}


def test_a_full_disk_while_training_keeps_the_earlier_weights(home: Path, tmp_path: Path) -> None:
    words = ("train", home / "chips", "--out", tmp_path / "run", *SMALL_TRAINING)
    with full_disk(6000):
        cli(*words).refused(1, "File too large|space")
    assert not list(tmp_path.rglob("*.safetensors"))
    assert cli(*words).code == 0
    weights = tmp_path / "run/models/unet/model.safetensors"
    before = weights.read_bytes()
    with full_disk(6000):
        cli(*words, "--no-resume").refused(1, "File too large|space")
    assert weights.read_bytes() == before
    assert not list(tmp_path.rglob("*.part"))
    assert cli(*words).code == 0 and weights.read_bytes() == before


def test_a_full_disk_while_measuring_keeps_whole_rows(home: Path, tmp_path: Path) -> None:
    words = ("evaluate", home / "ndwi.safetensors", home / "chips", "--out", tmp_path)
    with full_disk(9000):
        cli(*words).refused(1, "File too large|space")
    assert cli(*words).code == 0
    assert cli("evaluate", home / "ndwi.safetensors", home / "chips", "--out", tmp_path / "fresh").code == 0

    def rows(path: Path) -> list[object]:
        found = [json.loads(line) for line in path.read_text().splitlines()]
        return sorted((sorted({**row, "seconds": 0}.items(), key=str) for row in found), key=str)

    assert rows(tmp_path / "records.jsonl") == rows(tmp_path / "fresh/records.jsonl")


def test_a_full_disk_while_mapping_and_reporting_keeps_the_earlier_files(home: Path, tmp_path: Path) -> None:
    words = ("predict", home / "ndwi.safetensors", home / "scene.tif", "--out", tmp_path / "maps")
    assert cli(*words).code == 0
    before = contents(tmp_path / "maps")
    with full_disk(900):
        cli(*words, "--no-resume").refused(1, "File too large|space|room")
    assert contents(tmp_path / "maps") == before

    run = tmp_path / "run"
    assert cli("evaluate", home / "ndwi.safetensors", home / "chips", "--out", run).code == 0
    (run / "recipe.toml").write_text('name = "x"\n')
    assert cli("report", run).code == 0
    page = (run / "report.html").read_bytes()
    with full_disk(9000):
        cli("report", run).refused(1, "File too large|space")
    assert (run / "report.html").read_bytes() == page
    assert not list(tmp_path.rglob("*.part"))


# Two runs on one folder


def test_a_second_run_on_a_folder_is_refused_and_changes_nothing(home: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text(f'name = "x"\n[data]\nsource = "{home}/chips"\n')
    weights, chips = home / "ndwi.safetensors", home / "chips"
    for folder, words in {
        read_recipe(recipe, SMALL).id: ("run", recipe, "--out", tmp_path, *SMALL_TRAINING),
        "train": ("train", chips, "--out", tmp_path / "train", *SMALL_TRAINING),
        "chips": ("curate", home / "pairs", "--out", tmp_path / "chips"),
        "rows": ("evaluate", weights, chips, "--out", tmp_path / "rows"),
        "attack": (
            "attack",
            weights,
            chips,
            "--threat",
            "linf 1% reflectance",
            "--method",
            "fgsm",
            "--out",
            tmp_path / "attack",
        ),
        "maps": ("predict", weights, home / "scene.tif", "--out", tmp_path / "maps"),
    }.items():
        with RunLock(tmp_path / folder):
            cli(*words).refused(1, f"held by process {os.getpid()}")
            assert not contents(tmp_path / folder), folder


def test_a_folder_of_a_dead_run_is_taken_over(home: Path, tmp_path: Path) -> None:
    code = "import os, sys; from pathlib import Path; from seawall.io import RunLock; RunLock(Path(sys.argv[1])).__enter__(); os.kill(os.getpid(), 9)"
    for folder in ("rows", "maps", "chips"):
        dead = subprocess.run([sys.executable, "-c", code, str(tmp_path / folder)], check=False)
        assert dead.returncode == -signal.SIGKILL and (tmp_path / folder / ".lock").exists()
    assert cli("evaluate", home / "ndwi.safetensors", home / "chips", "--out", tmp_path / "rows").code == 0
    assert cli("predict", home / "ndwi.safetensors", home / "scene.tif", "--out", tmp_path / "maps").code == 0
    assert cli("curate", home / "pairs", "--out", tmp_path / "chips").code == 0
    assert not list(tmp_path.rglob(".lock"))


# Arguments


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("evaluate", "{w}", "{c}", "--part", "tset"), "did you mean 'test'"),
        (("attack", "{w}", "{c}", "--threat", "linf 1 dB"), "reflectance"),
        (("attack", "{w}", "{c}", "--threat", "linf 0.01"), "unit"),
        (("attack", "{w}", "{c}"), "none"),
        (("attack", "{w}", "{c}", "--threat", "linf 1% reflectance", "--method", "fgms"), "did you mean 'fgsm'"),
        (("train", "{c}", "--model", "unte"), "did you mean 'unet'"),
        (("train", "{c}", "--device", "gpu"), "device"),
        (("train", "{c}", "--set", "training.settings.epochs=0"), "epochs"),
        (("train", "{c}", "--set", "training.settings"), "key=value|settings"),
        (("predict", "{w}", "{s}", "--tile", "100"), "32"),
        (("predict", "{w}", "{s}", "--runtime", "onx"), "did you mean 'onnx'"),
        (("predict", "{w}", "{s}", "--device", "gpu"), "device"),
        (("evaluate", "{w}", "{c}", "--device", "gpu"), "device"),
        (("curate", "{p}", "--kind", "piars"), "did you mean 'pairs'"),
        (("curate", "{p}", "--sensor", "s3"), "sensor"),
        (("curate", "{p}", "--label-map", "a=b"), "raw=class"),
        (("curate", "{p}", "--labels", "ndwi > water"), "rule|labels"),
        (("curate", "{p}", "--band", "B99"), "--bands"),
        (("predict", "{w}"), "scene|SCENE"),
        (("predict", "{w}", "{s}", "--tile", "big"), "tile"),
        (("predcit", "{w}", "{s}"), "predict"),
        (("methods", "--kind", "atack"), "did you mean 'attack'"),
    ],
)  # fmt: skip
def test_a_wrong_argument_is_a_usage_error(home: Path, tmp_path: Path, words: tuple[str, ...], says: str) -> None:
    known = {"w": home / "ndwi.safetensors", "c": home / "chips", "s": home / "scene.tif", "p": home / "pairs"}
    out = () if words[0] == "methods" else ("--out", tmp_path / "out")
    done = cli(*(word.format(**known) for word in words), *out)
    assert done.code == 2, done
    assert re.search(says, done.error), done.error
    assert done.err.count("\n") == 1 + done.err.count(" ...\n"), done.err
    assert not list(tmp_path.rglob("*.tif")) and not list(tmp_path.rglob("*.safetensors"))


def test_folders_that_are_none(home: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    cli("report", tmp_path).refused(1, "recipe|run")
    cli("evaluate", home / "ndwi.safetensors", tmp_path).refused(1, "index.json|chip folder")
    cli("train", tmp_path / "nowhere", "--out", tmp_path / "run").refused(1, "nowhere")
    cli("curate", tmp_path / "nowhere").refused(1, "nowhere")
    cli("predict", home / "ndwi.safetensors", tmp_path / "no.tif", "--out", tmp_path / "maps").refused(
        1, "nothing there"
    )
    cli("predict", home / "ndwi.safetensors", tmp_path, "--out", tmp_path / "maps").refused(2, "scenes")
    cli("evaluate", home / "ndwi.safetensors", home / "chips", "--out", tmp_path / "notes.txt").refused(1, "notes.txt")
    cli("curate", home / "pairs", "--out", tmp_path / "notes.txt").refused(1, "notes.txt")
    cli("train", home / "chips", "--out", tmp_path / "notes.txt").refused(1, "notes.txt")

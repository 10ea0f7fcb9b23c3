"""The main job through the command line, on tiny simulated chips: to the end, again, killed, over, and verb by verb."""

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import rasterio

from terminal import cli, contents
from tiny import SMALL_TRAINING, pair

RECIPE = """
name = "tiny"
seed = 3
examples = 1

[data]
count = 8
size = 64
bands = ["B03", "B08", "B11"]

[split]
val = 0.25
test = 0.25

[model]
name = "unet"
settings = {width = 4, depth = 2}

[training.settings]
epochs = 2
steps_per_epoch = 4
patch = 32
batch = 4
lr = 1e-2

[[baselines]]
name = "threshold"
settings = {index = "mndwi"}

[[attacks]]
name = "fgsm"
threats = ["linf 1% reflectance"]

[[noises]]
name = "erode"
rates = [0.3]

[scene]
size = 128
"""
RADAR = (
    RECIPE.replace('["B03", "B08", "B11"]', '["VV", "VH"]\nsensor = "s1"')
    .replace('"mndwi"', '"vv"')
    .replace("1% reflectance", "0.5 dB")
    .replace('"tiny"', '"radar"')
)

pytestmark = pytest.mark.slow


def written(folder: Path, text: str = RECIPE) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "r.toml").write_text(text)
    return folder / "r.toml"


def run(folder: Path, *words: str, text: str = RECIPE) -> Path:
    """Run the recipe in this process and return its run folder."""
    done = cli("run", written(folder, text), "--out", folder / "runs", *words)
    assert done.code == 0, done.err
    return next(path for path in (folder / "runs").iterdir() if path.name != "chips")


def rows(folder: Path) -> dict[str, object]:
    """Return the records without their seconds, by key."""
    found = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    keyed = {
        json.dumps({k: v for k, v in row.items() if k not in ("value", "n", "flags", "seconds")}): row for row in found
    }
    assert len(keyed) == len(found), "a key twice"
    return {key: (row["value"], row["n"], row["flags"]) for key, row in keyed.items()}


def stamps(folder: Path) -> dict[str, int]:
    """When everything was written that takes time to make."""
    names = ("*.safetensors", "records.jsonl", "*.tif", "*.npz")
    return {str(p): p.stat().st_mtime_ns for name in names for p in folder.rglob(name)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbed."""
    return run(tmp_path_factory.mktemp("whole"))


def test_a_run_leaves_everything_it_promises(whole: Path) -> None:
    names = set(contents(whole))
    assert {
        "report.html",
        "recipe.toml",
        "env.json",
        "facts.json",
        "records.jsonl",
        "models/unet/model.safetensors",
    } <= names
    assert {f"scenes/scene.{layer}" for layer in ("class.tif", "water.tif", "uncertainty.tif", "json")} <= names
    assert "models/unet@erode-0.3/model.safetensors" in names
    assert any(name.startswith("examples/") for name in names)
    said = {(json.loads(key)["model"], json.loads(key)["method"]) for key in rows(whole)}
    assert said == {
        ("unet", "clean"),
        ("unet", "fgsm"),
        ("mndwi", "clean"),
        ("mndwi", "fgsm"),
        ("unet@erode-0.3", "clean"),
    }
    assert not [path for path in whole.parent.rglob(".*") if path.is_file()], "no lock and no half-written file stays"


def test_again_does_nothing_twice_and_gives_the_same_bytes(whole: Path) -> None:
    before, same = stamps(whole.parent), contents(whole)
    assert run(whole.parent.parent) == whole
    assert stamps(whole.parent) == before
    after = contents(whole)
    assert {name: digest for name, digest in after.items() if "/tb/" not in name} == {
        name: digest for name, digest in same.items() if "/tb/" not in name
    }, "report.html, facts.json and the histories are the same to the byte"


def kill_when(folder: Path, seen: str) -> None:
    """Start the run in a process of its own and kill it as soon as a file is there."""
    words = [sys.executable, "-m", "seawall.cli", "run", str(written(folder)), "--out", str(folder / "runs")]
    child = subprocess.Popen(words, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        for _ in range(12000):
            if next(folder.glob(seen), None) or child.poll() is not None:
                break
            time.sleep(0.005)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert child.returncode == -signal.SIGKILL, "it should have been killed before its end"


@pytest.mark.parametrize("seen", ["runs/tiny-*/models/unet/checkpoints/*.safetensors", "runs/tiny-*/records.jsonl"])
def test_killed_in_the_middle_it_ends_as_if_it_had_not_been(whole: Path, tmp_path: Path, seen: str) -> None:
    kill_when(tmp_path, seen)
    assert not list(tmp_path.glob("runs/tiny-*/report.html"))
    done = run(tmp_path)
    assert rows(done) == rows(whole)
    for name in ("models/unet/model.safetensors", "models/unet@erode-0.3/model.safetensors", "scenes/scene.water.tif"):
        assert (
            hashlib.sha256((done / name).read_bytes()).digest() == hashlib.sha256((whole / name).read_bytes()).digest()
        ), name
    assert not [path for path in tmp_path.rglob(".*") if path.is_file()]


def test_no_resume_starts_over_and_gives_the_same(whole: Path, tmp_path: Path) -> None:
    first = run(tmp_path)
    (first / "leftover.txt").write_text("of an earlier run")
    before = stamps(first)
    assert run(tmp_path, "--no-resume") == first
    assert rows(first) == rows(whole)
    assert not (first / "leftover.txt").exists()
    assert all(stamps(first)[path] > stamp for path, stamp in before.items())


def test_radar_runs_as_well(tmp_path: Path) -> None:
    done = run(tmp_path, text=RADAR)
    facts = json.loads((done / "facts.json").read_text())["data"]
    assert (facts["bands"], facts["unit"]) == (["VV", "VH"], "sigma0_db")
    threats = {json.loads(key)["threat"] for key in rows(done)}
    assert threats == {"", "linf 0.5 dB"}


def test_the_verbs_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def ask(*words: str) -> dict[str, list[dict[str, object]] | dict[str, object]]:
        done = cli(*words, "--json")
        assert done.code == 0, done.err
        return json.loads(done.out, parse_constant=pytest.fail)

    for i in range(6):
        pair(tmp_path / "pairs", f"place{i}", f"chip{i}", seed=i)
    chips = ask("curate", "pairs", "--out", "chips")
    assert chips["facts"]["made"] == chips["facts"]["groups"] == 6
    trained = ask("train", "chips", "--out", "run", *SMALL_TRAINING)
    weights = str(trained["facts"]["weights"])
    assert (
        Path(weights).is_file() and trained["facts"]["train"] + trained["facts"]["val"] + trained["facts"]["test"] == 6
    )
    measured = ask("evaluate", weights, "chips", "--part", "test", "--out", "run")
    assert [row["class"] for row in measured["table"]] == ["land", "water"]
    attacked = ask(
        "attack",
        weights,
        "chips",
        "--threat",
        "linf 1% reflectance",
        "--method",
        "fgsm",
        "--part",
        "test",
        "--out",
        "run",
    )
    assert [row["method"] for row in attacked["table"]][:2] == ["clean", "fgsm"]
    scene = next(Path("chips/images").glob("*.tif"))
    mapped = ask("predict", weights, str(scene), "--out", "maps")
    assert mapped["table"][0]["water_km2"] is not None and len(list(Path("maps").glob("*.tif"))) == 4
    asked = ask("predict", weights, str(scene), "--out", "land", "--klass", "land")
    assert asked["table"][0]["land_km2"] is not None and "water_km2" not in asked["table"][0]
    assert sorted(p.name.split(".")[1] for p in Path("land").glob("*.tif")) == ["class", "land", "sets", "uncertainty"]
    with rasterio.open(scene) as source:
        profile, data, bands = source.profile, source.read(), source.descriptions
    with rasterio.open("plain.tif", "w", **profile) as sink:  # the same pixels, without the names of the bands
        sink.write(data)
    named = [word for band in bands for word in ("--names", band)]
    again = ask("predict", weights, "plain.tif", "--out", "named", *named)
    assert again["table"][0]["water_km2"] == pytest.approx(mapped["table"][0]["water_km2"])
    page = ask("report", "run")
    assert "<html" in Path(str(page["facts"]["report"])).read_text()


def test_what_is_only_said_or_shown_trains_and_measures_nothing_again(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole.parent, tmp_path / "runs")
    copy = tmp_path / "runs" / whole.name
    kept = [*copy.rglob("*.safetensors"), copy / "records.jsonl"]
    before = {path: path.stat().st_mtime_ns for path in kept}
    changed = RECIPE.replace('name = "tiny"', 'name = "tiny"\ntitle = "Lakes"').replace("examples = 1", "examples = 2")
    assert run(tmp_path, text=changed.replace("size = 128", "size = 160")) == copy
    assert {path: path.stat().st_mtime_ns for path in kept} == before
    assert 'title = "Lakes"' in (copy / "recipe.toml").read_text()
    assert "Lakes" in (copy / "report.html").read_text()
    assert len(list(copy.glob("examples/*.npz"))) == 2 and len(list(whole.glob("examples/*.npz"))) == 1
    with rasterio.open(copy / "scenes" / "scene.water.tif") as mapped:
        assert mapped.width == 160


def test_labels_of_a_noise_are_kept_and_their_change_is_told(whole: Path) -> None:
    told = json.loads((whole / "facts.json").read_text())["noises"]["unet@erode-0.3"]
    assert told["noise"] == "erode" and told["rate"] == 0.3 and 0 < told["changed_share"] <= 0.3
    assert len(list((whole / "labels" / "unet@erode-0.3").glob("*.z"))) == told["chips"] == 4
    from seawall.pipeline.context import RunContext
    from seawall.pipeline.run import label_facts
    from seawall.recipe.recipe import make_recipe
    from seawall.result import no_progress

    printed = label_facts(RunContext(make_recipe({"name": "x"}), whole, "cpu", True, no_progress))
    assert printed == {
        "labels of unet@erode-0.3": f"erode budget 0.3 asked, {told['changed_share']:.1%} of the training pixels changed"
    }

"""The map's part of the page: the truth of a scene, the shift of its water share, its picture, its scales."""

import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest
import rasterio

from seawall.geo.preview import PREVIEW_SIDE, Stretch, write_preview
from seawall.report import scenes
from seawall.report.images import example_chips
from seawall.report.record_index import RecordIndex
from seawall.report.run_facts import DataFacts, MappedScene, RunFacts, SceneFacts, SceneTruth
from seawall.report.run_reader import RunFolder, read_run
from seawall.report.scenes import scene_section, share_difference, true_class_share
from seawall.report.summary import key_numbers, summary_sentences
from tiny import save

_spec = importlib.util.spec_from_file_location("fake_run", Path(__file__).parents[1] / "fake_run.py")
assert _spec and _spec.loader
fake_run = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fake_run)


def words_of(sentences):
    return " ".join("".join(p if isinstance(p, str) else p.text for p in one) for one in sentences)


def scene(share=0.1, truth=True, **result):
    """A scene of 100 km2, of which 20 are mapped as water and some share truly is."""
    facts = {"source": "input.tif", "classes": ("land", "water"), "area_km2": 20.0, "share": 0.2,
             "class_km2": {"land": 80.0, "water": 20.0}, "height": 10, "width": 10}  # fmt: skip
    known = SceneTruth(
        klass="water",
        iou=0.45,
        precision=0.5,
        recall=0.8,
        true_km2=100 * share,
        mapped_km2=20.0,
        expected_km2=25.0,
        pixels=100,
    )
    return MappedScene(result=SceneFacts(**(facts | result)), truth=known if truth else None)


def run_of(one, train=0.48, test=0.1):
    data = DataFacts(chips=3, classes=("land", "water"), water_share={"train": train, "test": test})
    return RunFolder(Path("nowhere"), None, "", RunFacts(data=data), {}, (), (), (), {"scene": one})


def counted_book():
    from seawall.records import Record

    return RecordIndex(
        [Record("r", "unet", "clean", "", "a", "g", m, "water", v, 9) for m, v in (("tp", 4), ("fp", 1), ("fn", 1))],
        "water",
    )


def test_the_first_words_hold_the_truth_of_the_scene():
    run = run_of(scene(share=0.17))
    words = words_of(summary_sentences(run, counted_book()))
    assert (
        "maps 20\u202fkm² of water, where 17\u202fkm² is the known truth (+18\u202f% area): IoU 0.45, precision 0.50, recall 0.80"
        in words
    )
    tile = next(t for t in key_numbers(run, counted_book()) if "whole scene" in t.name)
    assert (tile.cell.text, tile.cell.key, tile.note) == (
        "0.45",
        "scenes/scene.truth.json|iou",
        "maps 20\u202fkm², true 17\u202fkm²",
    )


def test_a_scene_without_truth_has_none_on_the_page():
    run = run_of(scene(truth=False))
    assert "truth" not in words_of(summary_sentences(run, counted_book()))
    assert not [t for t in key_numbers(run, counted_book()) if "scene" in t.name]
    assert scene_section(run, []).blocks[-1].kind == "definitions"


def test_the_table_sets_the_map_against_the_truth():
    table = next(b for b in scene_section(run_of(scene(share=0.16)), []).blocks if b.kind == "table")
    text = [[cell if isinstance(cell, str) else cell.text for cell in row] for row in table.rows]
    assert text == [
        ["true", "16\u202fkm²", "", "", "", ""],
        ["mapped", "20\u202fkm²", "+25\u202f%", "0.45", "0.50", "0.80"],
        ["expected from probabilities", "25\u202fkm²", "+56\u202f%", "", "", ""],
    ]


@pytest.mark.parametrize(
    ("share", "truth", "said"), [(0.1, True, "10\u202f%"), (0.1, False, "is, as mapped, 20\u202f%"), (0.45, True, "")]
)
def test_another_share_of_water_than_in_training_is_said(share, truth, said):
    found = share_difference(run_of(scene(share, truth)), scene(share, truth))
    assert len(found) == bool(said)
    if said:
        assert "48\u202f% water" in found[0] and said in found[0]


def test_the_true_share_is_of_the_seen_area():
    assert true_class_share(scene(0.1)) == pytest.approx(0.1)
    assert true_class_share(scene(0.1, truth=False)) is None
    assert true_class_share(scene(0.1, class_km2={"land": None, "water": None})) is None


def test_warnings_of_a_scene_stand_at_its_numbers_and_notes_do_not():
    for flags, carried in (
        (("acquisition-time-unknown",), ()),
        (("the scene declares no nodata value: all",),) * 2,
    ):
        tile = next(t for t in key_numbers(run_of(scene(flags=flags)), counted_book()) if "scene" in t.name)
        assert tile.cell.flags == carried


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return fake_run.make_run(tmp_path_factory.mktemp("made"), side=32, chips_per_place=1)


def test_the_map_shows_the_scene_its_mistakes_its_place_and_its_scales(made):
    unreadable = []
    section = scene_section(read_run(made), unreadable)
    pair = next(b for b in section.blocks if b.kind == "image-pairs").pairs[0]
    assert unreadable == [] and (pair.left.name, pair.right.name) == ("satellite image", "water map")
    assert (
        [name for name, _ in pair.right.overlays] == ["Mistakes", "Truth"] == [name for name, _ in pair.left.overlays]
    )
    assert [(p.scale.low, p.scale.high) for p in pair.panels] == [("0", "1"), ("0, sure", "1, no idea")]
    facts = dict(section.blocks[-1].items)
    assert re.fullmatch(r"[\d.]+° W, [\d.]+° S to [\d.]+° W, [\d.]+° S \(made up\)", facts["Where"])
    assert facts["When"] == "made up, at no time" and facts["To know"].startswith(
        "Nothing says when the scene was acquired"
    )


def test_mistakes_of_the_map_are_those_against_the_truth(made, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "seawall.report.images.mistakes_overlay",
        lambda predicted, truth, klass, valid: drawn.append((predicted, truth, klass, valid)) or "",
    )
    scene_section(read_run(made), [])
    ((predicted, truth, klass, valid),) = drawn
    known = json.loads((made / "scenes/reach.truth.json").read_text())
    hit, either = (
        ((predicted == klass) & (truth == klass) & valid).sum(),
        (((predicted == klass) | (truth == klass)) & valid).sum(),
    )
    assert hit / either == pytest.approx(known["iou"]) and valid.sum() == known["pixels"]


def test_a_truth_of_another_size_is_named(made, tmp_path):
    import shutil

    broken = tmp_path / "run"
    shutil.copytree(made, broken)
    save(broken / "scenes/input-480.truth.tif", np.zeros((1, 20, 30)), dtype="uint8")
    unreadable = []
    scene_section(read_run(broken), unreadable)
    assert "input-480.truth.tif: expected" in unreadable[0]


def test_a_picture_of_noise_says_its_scale(made):
    panels = example_chips(read_run(made), RecordIndex(read_run(made).records, "water"), [])[0].pairs[0].panels
    noise = next(p for p in panels if p.scale)
    assert noise.name == "noise, mean of B04, B03, B02"
    assert (noise.scale.low, noise.scale.high) == ("−1\u202f%", "+1\u202f% reflectance")


def test_a_target_and_a_restricted_noise_are_drawn_where_the_run_has_them(made, tmp_path):
    import shutil

    run = tmp_path / "run"
    shutil.copytree(made, run)
    path = sorted((run / "examples").glob("*.npz"))[0]
    with np.load(path) as held:
        arrays = dict(held)
    more = {
        "target": np.zeros_like(arrays["label"]),
        "noise_restricted": arrays["noise"],
        "pred_restricted": arrays["pred_attacked"],
    }
    np.savez_compressed(path, **arrays, **more)
    names = [p.name for p in example_chips(read_run(run), RecordIndex((), "water"), [])[0].pairs[0].panels]
    assert names[1:4] == [
        "noise, mean of B04, B03, B02",
        "noise on the class only, mean of B04, B03, B02",
        "the adversary’s target",
    ]
    assert names[-2:] == ["map, restricted noise", "what changed, restricted"]


def test_a_scene_with_clouds_is_not_black():
    rng = np.random.default_rng(0)
    image = rng.uniform(0.02, 0.06, (3, 64, 64)).astype(np.float32)
    image[:, :10] = 0.9
    seen = np.ones((64, 64), bool)
    seen[:, :4] = False
    picture = Stretch.of(image, seen)(image, seen)
    assert 90 < np.median(picture[10:, 4:]) < 130 and (picture[:, :4] == 0).all()


def test_a_stretch_keeps_hues_and_a_pair_alike():
    rng = np.random.default_rng(1)
    image = rng.uniform(0.0, 0.1, (3, 32, 32)).astype(np.float32)
    image[1] /= 2
    seen = np.ones((32, 32), bool)
    stretch = Stretch.of(image, seen)
    picture = stretch(image, seen).reshape(-1, 3)
    assert picture[:, 1].max() < 0.85 * picture[:, 0].max()
    assert (stretch(image, seen) == stretch(image.copy(), seen)).all()
    assert (stretch(image + 0.02, seen) >= stretch(image, seen)).all()


def test_a_preview_is_thinned_out_and_made_again_for_another_scene(tmp_path):
    data = np.arange(2 * 50 * 70).reshape(2, 50, 70) + 1
    source = save(tmp_path / "s.tif", data, bands=("B03", "B08"))
    path = write_preview(source, tmp_path / "p.npz", digest="one", side=20)
    with np.load(path) as held:
        assert held["rgb"].shape == (13, 18, 3) and list(held["bands"]) == ["B03", "B08"]
        gray = held["rgb"][..., 0].astype(int)
    assert (np.diff(gray, axis=0) >= 0).all() and gray[-1, -1] > gray[0, 0] + 200
    before = path.stat().st_mtime_ns
    write_preview(source, path, digest="one", side=20)
    assert path.stat().st_mtime_ns == before
    write_preview(source, path, digest="two", side=30)
    with np.load(path) as held:
        assert str(held["scene"]) == "two" and held["rgb"].shape[1] == 24


def test_strips_make_the_picture_of_the_whole(tmp_path):
    rng = np.random.default_rng(2)
    data = rng.integers(1, 4000, (3, 600, 520))
    data[:, :100, :50] = 0
    bands = ("B02", "B03", "B04")
    source = save(tmp_path / "s.tif", data, bands=bands, tiled=True, blockxsize=64, blockysize=64)
    with np.load(write_preview(source, tmp_path / "p.npz", digest="x", side=100)) as held:
        picture = held["rgb"]
    thin = data[::-1, ::6, ::6].astype(np.float32)
    seen = (data[:, ::6, ::6] != 0).all(0)
    assert (picture == Stretch.of(thin, seen)(thin, seen)).all() and PREVIEW_SIDE == 900
    with rasterio.open(source) as back:
        assert back.height == 600


def test_a_flag_with_a_detail_keeps_it_and_a_bare_one_is_explained() -> None:
    assert (
        scenes._flag_sentence("features-skipped: 3, points have no area") == "features-skipped: 3, points have no area"
    )
    assert scenes._flag_sentence("acquisition-time-unknown").startswith("Nothing says when the scene was acquired")
    assert scenes._flag_sentence("odd") == "odd"

"""Chips of several sources: names, curation, `seen` per source, views, threats, missing images."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from seawall import api
from seawall.bands import channels_of, parse_sources
from seawall.chip_context import ChipContext
from seawall.corruptions.build import build_corruption, parse_corruption
from seawall.data.chips import ChipFolder
from seawall.data.curate import curate_chips
from seawall.data.index import ChipHeader, read_index
from seawall.data.loader import patches, whole_chips
from seawall.data.writer import ChipWriter
from seawall.errors import DataError, UsageError
from seawall.inference.scene import open_scene
from seawall.models.weights import load_model, save_model
from seawall.recipe.recipe import make_recipe
from seawall.rng import Keys
from seawall.testing.corruptions import TWO_SOURCE_CHIPS, lake_chips
from seawall.testing.fixtures import TWO_SOURCE_SPEC, two_source_batch, two_source_model
from seawall.threat.model import ThreatModel
from seawall.threat.parser import parse_threat
from seawall.training.objectives.source_dropout import SourceDropout
from seawall.types import FILL, Batch, SegmentationModel, wants_all_bands

UNITS = ("sigma0_db", "sigma0_db", "reflectance", "reflectance")
HEADER = ChipHeader(("s1.VV", "s1.VH", "s2.B03", "s2.B08"), UNITS, ("land", "water"), 10.0)


@pytest.fixture
def folder(tmp_path: Path) -> ChipFolder:
    """Three chips of 8 x 8: s1 is unseen in the first column, s2 in the last two rows; chip c has no s2 at all."""
    writer, rng = ChipWriter(tmp_path / "chips", HEADER), np.random.default_rng(0)
    for id_ in "abc":
        image = rng.uniform(0.1, 0.4, (4, 8, 8)).astype(np.float32)
        image[:2] = 100 * image[:2] - 45
        seen = np.ones((4, 8, 8), bool)
        seen[:2, :, 0] = False
        seen[2:, 6:] = False
        seen[2:] &= id_ != "c"
        writer.write(id_, id_, image, rng.integers(0, 2, (8, 8)).astype(np.uint8), seen=seen)
    return writer.finish()


def test_a_chip_keeps_what_each_source_has_seen(folder: ChipFolder) -> None:
    batch = next(iter(whole_chips(folder, ["a"], multiple=16)))
    assert batch.seen_bands is not None
    assert batch.seen_bands[0, :, 3, 0].tolist() == [False, False, True, True]
    assert batch.seen_bands[0, :, 7, 3].tolist() == [True, True, False, False]
    # a label counts where any source is seen: not in the corner that neither sees, nor in the padding
    assert not bool(batch.seen[0, 7, 0]) and int(batch.valid.sum()) == 64 - 2
    assert batch.image[0, :, 7, 0].tolist() == [-30.0, -30.0, 0.0, 0.0]
    assert batch.image[0, :, 12, 12].tolist() == [-30.0, -30.0, 0.0, 0.0]
    [cut] = patches(folder, ["c"], patch=8, batch=1, count=1, augment="d4")
    assert cut.seen_bands is not None and not bool(cut.seen_bands[:, 2:].any()) and int(cut.seen.sum()) == 56


def test_mean_and_deviation_are_over_the_pixels_that_a_band_has(folder: ChipFolder) -> None:
    mean, std = folder.mean_std(folder.ids)
    chips = [folder.read(id_) for id_ in folder.ids]
    for band in range(4):
        values = np.concatenate([chip.image[band][chip.seen_bands[band]] for chip in chips])  # type: ignore[index]
        assert mean[band] == pytest.approx(values.mean(), abs=1e-5) and std[band] == pytest.approx(
            values.std(), abs=1e-5
        )


def test_an_index_of_several_sources_has_a_version_of_its_own_and_one_unit_per_band(folder: ChipFolder) -> None:
    assert '"version": 2' in (folder.root / "index.json").read_text(encoding="utf-8")
    assert read_index(folder.root)[0] == HEADER
    with pytest.raises(DataError, match="expected a unit"):
        replace(HEADER, unit=("sigma0_db", "reflectance", "reflectance", "reflectance"))
    with pytest.raises(DataError, match="expected a unit"):
        replace(HEADER, unit=("reflectance",) * 4)


def test_a_view_is_the_folder_of_some_bands(folder: ChipFolder) -> None:
    view = folder.with_bands(["s2.B08", "s1"])
    assert view.bands == ("s2.B08", "s1.VV", "s1.VH") and view.unit == ("reflectance", "sigma0_db", "sigma0_db")
    sar = folder.with_bands(["s1"])
    assert sar.unit == "sigma0_db" and sar.read("a").seen_bands is None
    assert np.array_equal(sar.read("a").image, folder.read("a").image[:2])
    assert not sar.read("a").seen[:, 0].any() and sar.read("a").seen[7, 3]
    whole, part = (next(iter(whole_chips(one, ["a", "b", "c"]))) for one in (folder, sar))
    assert torch.equal(whole.with_bands(sar.bands).image, part.image)
    assert torch.equal(whole.with_bands(sar.bands).valid, part.valid) and whole.with_bands(sar.bands).seen_bands is None
    with pytest.raises(UsageError, match=r"bands or sources.*'s3'"):
        folder.with_bands(["s3"])
    with pytest.raises(DataError, match="all bands"):
        part.with_bands(["s2.B03"])


def test_threats_of_one_source_and_of_both() -> None:
    spec = replace(TWO_SOURCE_SPEC, bands=HEADER.bands, unit=UNITS)
    radar, optical = parse_threat("linf 0.5 dB", spec), parse_threat("linf 1% reflectance bands=s2.B08", spec)
    assert (radar.bands, radar.unit, radar.low) == ((0, 1), "sigma0_db", None)
    assert (optical.bands, optical.unit, optical.low, optical.eps) == ((3,), "reflectance", 0.0, 0.01)
    both = parse_threat("linf 0.5 dB + linf 1% reflectance", spec)
    assert both.eps == (0.5, 0.5, 0.01, 0.01) and both.unit == UNITS and both.bands is None
    noise = parse_threat("linf 2x noise", spec)
    assert noise.bands == (2, 3) and isinstance(noise.eps, tuple) and noise.eps[:2] == (0.0, 0.0)
    for threat in (radar, optical, both):
        assert parse_threat(str(threat), spec) == threat
    x, adv = torch.full((1, 4, 1, 1), 0.005), torch.full((1, 4, 1, 1), -9.0)
    seen = torch.tensor([True, False, True, True]).view(1, 4, 1, 1)
    # dB has no lower bound, reflectance stays above 0, the unseen band as it is
    torch.testing.assert_close(both.project(adv, x, seen).flatten(), torch.tensor([-0.495, 0.005, 0.0, 0.0]))
    for text in (
        "l2 1 dB + l2 1% reflectance",
        "linf 1 dB + linf 2 dB",
        "linf 1 dB + linf 1% reflectance sign=up",
        "linf 1",
    ):
        with pytest.raises(UsageError, match="threat: expected"):
            parse_threat(text, spec)
    with pytest.raises(UsageError, match="one linf budget per unit"):
        parse_threat("linf 1 dB + linf 1 dB", replace(spec, unit="sigma0_db"))
    with pytest.raises(UsageError, match="a length over several units"):
        ThreatModel("l2", (1.0, 0.1), ("sigma0_db", "reflectance"))


def test_a_corruption_of_one_source_leaves_the_others_and_the_label() -> None:
    batch = lake_chips(TWO_SOURCE_CHIPS)
    keys = Keys(0, batch.chips)
    hazy = parse_corruption("haze + speckle", TWO_SOURCE_CHIPS)(batch, 1.0, keys)
    alone = parse_corruption("haze", TWO_SOURCE_CHIPS)(batch, 1.0, keys)
    assert torch.equal(alone.image[:, :2], batch.image[:, :2]) and not torch.equal(
        hazy.image[:, :2], batch.image[:, :2]
    )
    torch.testing.assert_close(alone.image[:, 2:], hazy.image[:, 2:])
    wedge = parse_corruption("nodata-wedge worst=0.5 source=s2", TWO_SOURCE_CHIPS)(batch, 1.0, keys)
    assert torch.equal(wedge.image_seen[:, :2], batch.image_seen[:, :2])
    assert torch.equal(wedge.valid, batch.valid & (batch.image_seen[:, 0] | wedge.image_seen[:, 2]))
    with pytest.raises(UsageError, match="expected one of the chips' sources"):
        parse_corruption("haze source=s2.pre", TWO_SOURCE_CHIPS)


def test_without_its_image_a_source_is_unseen_and_the_others_stay() -> None:
    batch = two_source_batch(images=40, size=4)
    context = ChipContext.of_model(TWO_SOURCE_SPEC)
    missing = build_corruption("missing-source", {"source": "s2"}, context)
    some, all_ = (missing(batch, severity, Keys(0, batch.chips)) for severity in (0.4, 1.0))
    assert not bool(all_.image_seen[:, 1].any()) and bool((all_.image[:, 1] == FILL["reflectance"]).all())
    assert torch.equal(all_.image[:, 0], batch.image[:, 0])
    assert torch.equal(all_.valid, batch.valid & batch.image_seen[:, 0])
    lost = ~some.image_seen[:, 1].flatten(1).any(1)
    assert 0.2 < float(lost.float().mean()) < 0.6
    more = ~missing(batch, 0.7, Keys(0, batch.chips)).image_seen[:, 1].flatten(1).any(1)
    assert bool((more | ~lost).all()), "a chip got its image back at a higher severity"


def test_dropout_never_takes_the_only_source_and_meets_what_is_measured() -> None:
    batch = two_source_batch(images=40, size=4)
    model, keys = two_source_model(), Keys(0, batch.chips)
    changed = SourceDropout(rate=1.0).changed(model, batch, keys)
    there = changed.image_seen.flatten(2).any(2)
    assert bool((there.sum(1) == 1).all()) and 0.2 < float(there[:, 0].float().mean()) < 0.8
    alone = SourceDropout(rate=1.0, sources=("s2",)).changed(model, batch, keys)
    missing = build_corruption("missing-source", {"source": "s2"}, ChipContext.of_model(TWO_SOURCE_SPEC))(
        batch, 1.0, keys
    )
    assert torch.equal(alone.image, missing.image) and torch.equal(alone.valid, missing.valid)
    assert torch.equal(SourceDropout(rate=1.0, sources=("s1",)).changed(model, alone, keys).image, alone.image)
    one = SourceDropout(rate=0.5).changed(model, batch.select([7]), Keys(0, batch.chips).select([7]))
    assert torch.equal(one.image[0], SourceDropout(rate=0.5).changed(model, batch, keys).image[7])


def test_weights_hold_a_unit_per_band(tmp_path: Path) -> None:
    model = two_source_model()
    save_model(tmp_path / "m.safetensors", model)
    spec = load_model(tmp_path / "m.safetensors", into=two_source_model(), unit=TWO_SOURCE_SPEC.unit).spec
    assert spec == model.spec


@dataclass(frozen=True)
class Pupil:
    """An objective that looks at a band that its model does not take."""

    all_bands: bool = True

    def __call__(self, model: SegmentationModel, batch: Batch, keys: Keys) -> Tensor:
        own, other = batch.with_bands(model.spec.bands), batch.with_bands(["s2.B03"])
        assert own.image.shape[1] == 1 and other.image.shape[1] == 1 and batch.image.shape[1] == 2
        return model(own.image).square().mean() + 0 * other.image.mean()


def test_an_objective_may_see_bands_that_its_model_does_not_take() -> None:
    class Own(nn.Module):
        spec = replace(TWO_SOURCE_SPEC, bands=("s1.VV",), unit="sigma0_db")

        def forward(self, image: Tensor) -> Tensor:
            return image.repeat(1, 2, 1, 1)

    batch = two_source_batch()
    assert wants_all_bands(Pupil()) and not wants_all_bands(SourceDropout())
    assert wants_all_bands(SourceDropout().__class__(objective="supervised")) is False
    assert float(Pupil()(Own(), batch, Keys(0, batch.chips))) > 0


def test_ids_of_recipes_with_one_source_stay() -> None:
    plain = make_recipe({"name": "x"})
    assert "inputs" not in plain.deciding and "unpaired" not in plain.deciding["data"]
    assert make_recipe({"name": "x", "inputs": ["B03"]}).id != plain.id
    assert (
        make_recipe({"name": "x", "data": {"sensor": "s1,s2", "unpaired": "keep"}}).deciding["data"]["unpaired"]
        == "keep"
    )


def test_names_of_sources_are_checked() -> None:
    assert parse_sources("s1,s1.pre,s2") == ("s1", "s1.pre", "s2")
    for text in ("s3", "s1,s1", "s1, s2", "s1_pre", ""):
        with pytest.raises(UsageError, match="sensor: expected"):
            parse_sources(text)
    assert channels_of(("s1",), HEADER.bands, "inputs") == (0, 1)


def test_simulated_radar_and_optics_become_one_folder(tmp_path: Path) -> None:
    made = curate_chips(
        "2", tmp_path / "both", kind="simulated size=32", sensor="s1,s2", bands=["s1", "s2.B03", "s2.B08"]
    )
    both = made.folder
    assert both.bands == ("s1.VV", "s1.VH", "s2.B03", "s2.B08") and not made.failed
    for sensor, at in (("s1", [0, 1]), ("s2", [2, 3])):
        bands = ["B03", "B08"] if sensor == "s2" else None
        single = curate_chips("2", tmp_path / sensor, kind="simulated size=32", sensor=sensor, bands=bands).folder
        for id_ in both.ids:
            there = single.read(id_).seen
            np.testing.assert_allclose(both.read(id_).image[at][:, there], single.read(id_).image[:, there], atol=1e-7)
    again = curate_chips(
        "2", tmp_path / "both", kind="simulated size=32", sensor="s1,s2", bands=["s1", "s2.B03", "s2.B08"]
    )
    assert set(again.kept) == set(both.ids)
    with pytest.raises(UsageError, match="none of s2"):
        curate_chips("2", tmp_path / "x", kind="simulated size=32", sensor="s1,s2", bands=["s1"])
    with pytest.raises(UsageError, match="expected several sources"):
        curate_chips("2", tmp_path / "x", kind="simulated size=32", sensor="s1", unpaired="keep")


def test_a_scene_of_several_sources_is_read_as_its_chip(tmp_path: Path) -> None:
    wanted = ["s1", "s2.B03", "s2.B08"]
    both = curate_chips(
        "1", tmp_path / "both", kind="simulated size=64 clouds=false", sensor="s1,s2", bands=wanted
    ).folder
    chip = both.read(both.ids[0])
    writer = ChipWriter(tmp_path / "holes", both.header)
    seen = np.ones(chip.image.shape, bool)
    seen[:2, :, :9] = False  # s1 is missing on the left, both at the top
    seen[:, :5] = False
    writer.write("x", "x", chip.image, chip.label.astype(np.uint8), seen=seen, grid=chip.grid)
    folder = writer.finish()
    want, spec = folder.read("x"), replace(TWO_SOURCE_SPEC, bands=folder.bands, unit=folder.unit)
    with open_scene(folder.root / folder.row("x").image, spec) as scene:
        image, there = scene.fetch(0, 0, 64, 64)
        assert scene.scale is not None and "s1: sigma0_db" in str(scene.scale) and "s2: reflectance" in str(scene.scale)
    np.testing.assert_allclose(image, want.image, atol=1e-6)
    assert np.array_equal(there, want.seen) and not there[:5].any() and there[5:].all()


@pytest.mark.real
def test_unpaired_chips_fail_with_the_missing_image_or_are_kept(real_chips: Path, tmp_path: Path) -> None:
    settings = {"kind": "index", "sensor": "s1,s2", "select": "sen1floods11_"}
    strict = curate_chips(real_chips / "index.csv", tmp_path / "strict", **settings)  # type: ignore[arg-type]
    reasons = dict(strict.failed)
    assert "got none of s2" in reasons["sen1floods11_Ghana_53713"] and strict.folder.ids == (
        "sen1floods11_India_900498",
    )
    chip = strict.folder.read("sen1floods11_India_900498")
    assert chip.image.shape == (15, 512, 512) and np.median(chip.image[0]) < -5 and 0 < np.median(chip.image[4]) < 0.5
    kept = curate_chips(real_chips / "index.csv", tmp_path / "kept", unpaired="keep", **settings).folder  # type: ignore[arg-type]
    ghana = kept.read("sen1floods11_Ghana_53713")
    assert "missing-s2" in kept.row("sen1floods11_Ghana_53713").flags and ghana.seen_bands is not None
    assert not ghana.seen_bands[2:].any() and ghana.valid.any()
    nigeria = kept.read("sen1floods11_Nigeria_812045")
    assert nigeria.seen_bands is not None and 0 < nigeria.seen_bands[0].mean() < 1 and not nigeria.seen_bands[2].any()


@pytest.mark.real
def test_ombria_chips_hold_four_images_that_are_said_to_be_stretched(real_chips: Path, tmp_path: Path) -> None:
    made = curate_chips(
        real_chips / "index.csv", tmp_path / "o", kind="index", sensor="s1,s1.pre,s2,s2.pre", select="ombria_000"
    ).folder
    assert made.unit == "stretched" and not made.header.physical
    assert made.bands[:3] == ("s1.pol?", "s1.pre.pol?", "s2.SWIR?") and len(made.bands) == 8
    with pytest.raises(UsageError, match="got stretched"):
        build_corruption("haze", {}, ChipContext.of(made, made.ids))


def test_a_chip_of_a_stretched_picture_can_be_mapped(real_chips: Path, tmp_path: Path) -> None:
    api.curate(real_chips, kind="index", sensor="s1", select="etci_", out=tmp_path / "chips")
    settings = ["epochs=1", "steps_per_epoch=1", "batch=2", "patch=32"]
    changes = [
        "split.val=0",
        "split.test=0",
        *(f"training.settings.{one}" for one in settings),
        "model.settings.width=2",
    ]
    facts = api.train(tmp_path / "chips", out=tmp_path / "run", changes=changes).facts
    image = sorted((tmp_path / "chips" / "images").glob("*.tif"))[0]
    done = api.predict(str(facts["weights"]), image, out=tmp_path / "maps")
    assert facts["train"] == 50 and done.table and (tmp_path / "maps" / f"{image.stem}.class.tif").exists()

"""The verb `certify`: scenes whose certificates do not depend on tiles or kills, and chips with an attack that looks for a false one."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from scipy import stats

from seawall import api
from seawall.data.chips import ChipFolder
from seawall.data.index import ChipHeader
from seawall.data.loader import whole_chips
from seawall.data.writer import ChipWriter
from seawall.errors import UsageError
from seawall.geo.raster import Grid, write_cog
from seawall.inference.certify import CertifiedScene, SceneCertifier
from seawall.inference.layers import NODATA
from seawall.inference.settings import SceneJob, find_scenes
from seawall.inference.tiling import TileAxis
from seawall.models.unet import UNet
from seawall.models.weights import load_model, save_model
from seawall.modules import head_layer
from seawall.pipeline.certify_chips import CertifiedChip, ChipCertifier
from seawall.records import read_records
from seawall.types import Batch
from seawall.uncertainty.certification import ABSTAIN, Certification, LookResult, certified_classes, needed_votes
from seawall.uncertainty.smoothed_votes import PositionNoise
from terminal import cli
from tiny import BANDS, SPEC, PixelModel

GRID = Grid(150, 170, Affine(10, 0, 500000, 0, -10, 5000000), "EPSG:32633")
QUICK = Certification(sigma=0.02, tau=0.6, alpha=0.1, samples=40, looks=(8, 40))
"""Two looks: 8 draws are too few for any certificate, so the draws go on to the second."""


def scene(path: Path, hole: bool = True) -> Path:
    """Write a scene with a soft shore, so that votes are split, and an unseen corner."""
    random, across = np.random.default_rng(0), np.linspace(-0.1, 0.1, 170)
    green = 0.07 + np.tile(across, (150, 1)) + random.normal(0, 0.01, (150, 170))
    data = np.rint(np.stack([green, np.full_like(green, 0.07)]).clip(0.001) * 10000).astype(np.uint16)
    if hole:
        data[:, :40, :30] = 0
    write_cog(path, data, GRID, bands=BANDS, nodata=0)
    return path


def network() -> torch.nn.Module:
    """Return an untrained network between its two classes."""
    torch.manual_seed(1)
    model = UNet(width=4, depth=1, norm="pixel")(SPEC).eval()
    image = torch.rand(1, 2, 64, 64, generator=torch.Generator().manual_seed(0)) * 0.2
    head = head_layer(model, image)
    with torch.no_grad():
        gap = model(image)[:, 1] - model(image)[:, 0]
        head.bias[1] -= gap.median()  # type: ignore[index,operator]
    return model


def certified(model: torch.nn.Module, path: Path, out: Path, **settings: object) -> tuple[CertifiedScene, np.ndarray]:
    made = SceneCertifier(model, out, **({"certification": QUICK, "device": "cpu"} | settings))  # type: ignore[arg-type]
    result = made.certify(SceneJob(path, "a"))
    with rasterio.open(out / result.file) as source:
        return result, source.read(1)


def test_the_map_is_that_of_votes_over_the_whole_scene(tmp_path: Path) -> None:
    """Draw by draw on the whole image, without tiles, buffer or histogram."""
    model = PixelModel(gain=20.0)
    result, got = certified(model, scene(tmp_path / "a.tif"), tmp_path / "out", tile=64, overlap=32)
    with rasterio.open(tmp_path / "a.tif") as source:
        stored = source.read()
    seen, image = (stored > 0).any(0), stored.astype(np.float32) / 10000
    noise, rows, cols = PositionNoise(0, 2), np.arange(150), np.arange(170)
    water = sum(
        (image[0] + 0.02 * draw[0] > image[1] + 0.02 * draw[1]).astype(np.uint16)
        for draw in (noise.draw(n, rows, cols) for n in range(40))
    )
    votes = np.stack([40 - water, water]).astype(np.uint16)
    histogram = np.bincount(votes.max(0)[seen], minlength=41)
    needed = needed_votes(histogram, 0.6, 0.05)
    expected = np.where(seen, certified_classes(votes, needed), NODATA)
    assert (result.draws, result.needed, result.pixels) == (40, needed, int(seen.sum()))
    assert (got != expected).mean() < 1e-4, "a vote may be one of rounding"
    assert 0.2 < (got == ABSTAIN).mean() < 0.8, "the shore is not certified, and both sides are"
    assert {0, 1, ABSTAIN, NODATA} == set(np.unique(got).tolist())


def test_areas_add_up_and_unseen_pixels_are_in_none(tmp_path: Path) -> None:
    result, got = certified(PixelModel(), scene(tmp_path / "a.tif"), tmp_path / "out")
    km2 = {value: (got == value).sum() * 100 / 1e6 for value in (0, 1, ABSTAIN)}
    assert result.certified_km2 == pytest.approx(km2[1]) and result.class_km2["land"] == pytest.approx(km2[0])
    assert result.abstained_km2 == pytest.approx(km2[ABSTAIN])
    assert result.may_be_km2 == pytest.approx(km2[1] + km2[ABSTAIN])
    assert result.certified_share == pytest.approx((km2[0] + km2[1]) / (result.pixels * 100 / 1e6))
    assert (got == NODATA).sum() == 40 * 30 == GRID.height * GRID.width - result.pixels
    stored = json.loads((tmp_path / "out/a.certified.json").read_text())["result"]
    assert stored["certified_km2"] == result.certified_km2 and "within 1 x 1 pixels" in stored["radius"]
    with rasterio.open(tmp_path / "out" / result.file) as source:
        colors = source.colormap(1)
        assert source.nodata == NODATA and colors[NODATA][3] == 0
        assert len({colors[value] for value in (0, 1, ABSTAIN)}) == 3


def test_a_certified_map_beside_its_scene_is_no_scene(tmp_path: Path) -> None:
    certified(PixelModel(), scene(tmp_path / "a.tif"), tmp_path)
    assert [job.name for job in find_scenes(tmp_path, tmp_path)] == ["a"]


def test_tiles_change_nothing(tmp_path: Path) -> None:
    path, model = scene(tmp_path / "a.tif"), network()
    whole, expected = certified(model, path, tmp_path / "whole", tile=256)
    assert 0.05 < (expected == ABSTAIN).mean() < 0.95
    for tile, overlap in ((64, 32), (96, 32)):
        result, got = certified(model, path, tmp_path / f"tiles{tile}", tile=tile, overlap=overlap)
        assert (got == expected).all() and not result.flags
        assert (result.draws, result.needed, result.certified_km2) == (whole.draws, whole.needed, whole.certified_km2)


@pytest.mark.parametrize("overlap", [0, 32, 64])
@pytest.mark.parametrize("size", [50, 128, 150, 1000, 1313])
def test_cores_cover_a_side_once_within_where_tiles_have_weight(size: int, overlap: int) -> None:
    axis = TileAxis(size, 128, overlap, align=8)
    cores = [axis.core(k) for k in range(len(axis.starts))]
    assert cores[0][0] == 0 and cores[-1][1] == size
    assert all(first[1] == second[0] for first, second in pairwise(cores))
    for k, (low, high) in enumerate(cores):
        start, end = axis.support(k)
        assert start <= low < high <= end


class KilledError(Exception):
    """Stands for a kill in the middle of the work."""


def killed_after(tiles: int) -> object:
    count = [0]

    def progress(done: int, total: int, note: str) -> None:
        count[0] += 1
        if count[0] == tiles:
            raise KilledError

    return progress


@pytest.mark.parametrize("tiles", [3, 9, 10, 15])
def test_a_resumed_map_is_that_of_one_run(tmp_path: Path, tiles: int) -> None:
    """Killed in the first look, after it, and in the second: 3 x 3 tiles each."""
    path, model = scene(tmp_path / "a.tif"), PixelModel()
    settings = {"tile": 64, "overlap": 0}
    whole, expected = certified(model, path, tmp_path / "whole", **settings)
    calls = model.calls
    with pytest.raises(KilledError):
        certified(model, path, tmp_path / "out", progress=killed_after(tiles), **settings)
    assert not [p for p in (tmp_path / "out").iterdir() if not p.name.startswith(".")], "nothing has a final name"
    model.calls = 0
    result, got = certified(model, path, tmp_path / "out", **settings)
    assert (got == expected).all() and result.needed == whole.needed and result.certified_km2 == whole.certified_km2
    spent = sum(8 if tile < 9 else 32 for tile in range(tiles))
    assert model.calls == calls - spent, "what was finished is not drawn again"
    assert not list((tmp_path / "out").glob(".*part"))
    again, _ = certified(model, path, tmp_path / "out", **settings)
    assert again.reused and replace(again, reused=False) == result
    assert not certified(model, path, tmp_path / "out", certification=replace(QUICK, seed=1), **settings)[0].reused


def test_votes_that_were_damaged_are_drawn_again(tmp_path: Path) -> None:
    path, model, out = scene(tmp_path / "a.tif"), PixelModel(), tmp_path / "out"
    _, expected = certified(model, path, tmp_path / "whole", tile=64, overlap=0)
    for damaged in ("votes1.raw", "look.json", "ledger.jsonl"):
        with pytest.raises(KilledError):
            certified(model, path, out, progress=killed_after(14), tile=64, overlap=0, resume=False)
        file = out / ".a.certified.part" / damaged
        raw = bytearray(file.read_bytes())
        raw[: len(raw) // 2] = bytes(len(raw) // 2)
        file.write_bytes(raw)
        _, got = certified(model, path, out, tile=64, overlap=0)
        assert (got == expected).all(), damaged
        (out / "a.certified.json").unlink()


def test_a_scene_without_a_seen_pixel_has_no_certificate_and_no_abstention(tmp_path: Path) -> None:
    write_cog(tmp_path / "a.tif", np.zeros((2, 150, 170), np.uint16), GRID, bands=BANDS, nodata=0)
    model = PixelModel()
    result, got = certified(model, tmp_path / "a.tif", tmp_path / "out")
    assert model.calls == 0 and (got == NODATA).all()
    assert (result.pixels, result.draws, result.certified_share, result.abstained_km2) == (0, 0, None, 0)


def test_a_scene_that_fails_is_listed_and_leaves_nothing(tmp_path: Path) -> None:
    class Overflow(PixelModel):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return super().forward(image) * float("nan")

    scene(tmp_path / "a.tif")
    made, failed = SceneCertifier(Overflow(), tmp_path / "out", QUICK).scenes(tmp_path / "a.tif")
    assert made == () and "finite probabilities under noise" in failed[0][1]
    assert not list((tmp_path / "out").glob("*a*"))
    with pytest.raises(UsageError, match="one number per band"):
        SceneCertifier(PixelModel(), tmp_path / "out", replace(QUICK, sigma=(0.1, 0.1, 0.1))).scenes(tmp_path / "a.tif")


def folder(root: Path, chips: int = 4) -> ChipFolder:
    """Write chips of two places, with an unseen corner, labelled by the model that they are certified with."""
    writer, random = (
        ChipWriter(root, ChipHeader(BANDS, "reflectance", ("land", "water"), 10.0)),
        np.random.default_rng(3),
    )
    for i in range(chips):
        image = random.uniform(0.1, 0.3, (2, 24, 24)).astype(np.float32)
        seen = np.ones((24, 24), bool)
        seen[:4, :4] = False
        label = np.where(seen, image[0] > image[1], 255).astype(np.uint8)
        grid = Grid(24, 24, Affine(10, 0, 1000 * i, 0, -10, 0), "EPSG:32633")
        writer.write(f"c{i}", f"place{i % 2}", np.where(seen, image, 0), label, seen=seen, grid=grid)
    return writer.finish()


def test_chips_are_certified_attacked_and_counted(tmp_path: Path) -> None:
    chips, weights = folder(tmp_path / "chips").root, tmp_path / "m.safetensors"
    save_model(weights, network())
    call = {"sigma": [0.05], "tau": 0.6, "alpha": 0.1, "samples": 48, "attack_steps": 5, "device": "cpu"}
    done = api.certify(weights, chips, out=tmp_path / "out", **call)
    rows = list(read_records(tmp_path / "out/records.jsonl"))
    value = {(row.metric, row.klass, row.chip): row.value for row in rows}
    for chip in ("c0", "c1", "c2", "c3"):
        own = sum(value["certified", klass, chip] for klass in ("land", "water"))
        assert own <= 24 * 24 - 16, "unseen pixels are neither certified nor abstained at"
        assert value["tp", "land", chip] + value["tp", "water", chip] <= own
        for klass in ("land", "water"):
            assert value["tp", klass, chip] + value["fn", klass, chip] == label_count(chips, chip, klass)
    assert done.facts["flipped_by_attack"] == 0
    assert (rows[0].norm, rows[0].unit) == ("l2", "reflectance") and rows[0].eps[0] == pytest.approx(
        0.05 * 0.2533, rel=1e-3
    )
    assert done.facts["certified_share"] + done.facts["abstained_share"] == pytest.approx(1)
    table = {row["class"]: row for row in done.table}
    seen = 4 * (24 * 24 - 16) * 100 / 1e6
    assert table["water"]["may_be_km2"] + table["land"]["certified_km2"] == pytest.approx(seen)
    size = (tmp_path / "out/records.jsonl").stat().st_size
    assert api.certify(weights, chips, out=tmp_path / "out", **call).table == done.table
    assert (tmp_path / "out/records.jsonl").stat().st_size == size, "nothing is drawn again"
    grouped = api.certify(weights, chips, out=tmp_path / "out", **call, family="group")
    assert grouped.facts["certified_share"] <= done.facts["certified_share"]
    grouped_rows = [row for row in read_records(tmp_path / "out/records.jsonl") if row.recipe != rows[0].recipe]
    assert {row.n for row in grouped_rows if row.metric == "draws"} == {2 * (24 * 24 - 16)}


def label_count(root: Path, chip: str, klass: str) -> int:
    [batch] = whole_chips(ChipFolder.open(root), [chip])
    return int(((batch.label == ("land", "water").index(klass)) & batch.valid).sum())


def split_pixels(probability: float, sigma: float) -> tuple[PixelModel, Batch]:
    """Return a linear model and a chip whose pixels are water under noise with this probability."""
    score = float(stats.norm.ppf(probability)) * sigma * 2**0.5
    image = torch.full((1, 2, 8, 8), 0.2)
    image[:, 0] += score
    return PixelModel().eval(), Batch.of(image, torch.ones(1, 8, 8, dtype=torch.long))


def test_the_attack_reaches_the_closed_form_and_finds_false_certificates() -> None:
    """A linear pixel loses exactly radius / sigma normal quantiles: from p to Phi(Phi^-1(p) - Phi^-1(tau))."""
    sigma, draws = 0.05, 2000
    settings = Certification(sigma=sigma, tau=0.75, alpha=0.01, samples=draws, looks=(draws,))
    for p, flips in ((0.9, 0), (0.76, 0), (0.6, 1)):
        model, batch = split_pixels(p, sigma)
        water = np.ones((8, 8), np.uint8)
        chip = CertifiedChip(batch, water, np.full((8, 8), round(p * draws), np.uint16), LookResult(draws, 64, 0, 64))
        outcome = ChipCertifier(model, settings, 20).attack(chip)
        assert outcome.flipped == flips, f"at {p} a certificate is {'false' if flips else 'true'}"
        assert outcome.least_share == pytest.approx(stats.norm.cdf(stats.norm.ppf(p) - stats.norm.ppf(0.75)), abs=0.04)
    model, batch = split_pixels(0.9, sigma)
    [held] = ChipCertifier(model, settings).certify([batch])
    assert held.certified.all() and (held.classes == 1).all()


def test_other_names_of_the_bands_are_another_map(tmp_path: Path) -> None:
    weights = tmp_path / "m.safetensors"
    save_model(weights, network())
    with rasterio.open(scene(tmp_path / "named.tif")) as source:
        stored, profile = source.read(), {**source.profile, "driver": "GTiff"}
    with rasterio.open(tmp_path / "a.tif", "w", **profile) as sink:
        sink.write(stored)

    def water(names: tuple[str, ...], out: str) -> object:
        asked = {"sigma": [0.02], "tau": 0.6, "alpha": 0.1, "samples": 40, "look": [8, 40], "device": "cpu"}
        return api.certify(weights, tmp_path / "a.tif", out=tmp_path / out, names=names, **asked).table[0][
            "certified_water_km2"
        ]

    right, swapped = tuple(BANDS), tuple(reversed(BANDS))
    first = water(right, "one")
    assert water(swapped, "one") == water(swapped, "two") != first


def test_options_without_an_effect_are_refused(tmp_path: Path) -> None:
    chips, weights = folder(tmp_path / "chips", 2).root, tmp_path / "m.safetensors"
    save_model(weights, network())
    with pytest.raises(UsageError, match="sigma: expected the standard deviation"):
        api.certify(weights, chips)
    with pytest.raises(UsageError, match="tile: expected nothing for a chip folder"):
        api.certify(weights, chips, sigma=[0.01], tile=64)
    with pytest.raises(UsageError, match="attack_steps: expected nothing for a scene"):
        api.certify(weights, scene(tmp_path / "a.tif"), sigma=[0.01], attack_steps=5)
    with pytest.raises(UsageError, match="family: unknown 'place'"):
        api.certify(weights, chips, sigma=[0.01], family="place")
    assert load_model(weights) is not None


def test_the_command_line_certifies_a_scene(tmp_path: Path) -> None:
    weights = tmp_path / "m.safetensors"
    save_model(weights, network())
    done = cli(
        "certify",
        weights,
        scene(tmp_path / "a.tif"),
        "--sigma",
        "0.05",
        "--tau",
        "0.6",
        "--alpha",
        "0.1",
        "--samples",
        "40",
        "--look",
        "8",
        "--look",
        "40",
        "--out",
        tmp_path / "out",
        "--json",
    )
    table = json.loads(done.out)["table"]
    assert table[0]["scene"] == "a" and table[0]["draws"] == 40
    assert table[0]["may_be_km2"] >= table[0]["certified_water_km2"]
    assert (tmp_path / "out/a.certified.tif").exists()

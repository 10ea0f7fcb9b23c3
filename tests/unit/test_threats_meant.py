"""The threats that people in this field mean: each is a text, a value and a set of images, with no attack of its own."""

from pathlib import Path

import pytest
import torch

from seawall.attacks.pgd import PGD
from seawall.errors import UsageError
from seawall.geo.sensors import band_noise
from seawall.pipeline.validate import attack_cases, split_by_band
from seawall.recipe.recipe import make_recipe
from seawall.report.attack_effects import band_effects
from seawall.report.record_index import RecordIndex
from seawall.rng import Keys
from seawall.testing.fixtures import accuracy, ground_batch, linear_model
from seawall.threat.parser import parse_threat
from seawall.types import Batch, ModelSpec

S2 = linear_model().spec  # B02, B03
S1 = linear_model(unit="sigma0_db").spec
DOCS = Path(__file__).parents[2] / "docs" / "threats.md"


def attacked(
    text: str, spec: ModelSpec = S2, batch: Batch | None = None, **tables: object
) -> tuple[torch.Tensor, Batch]:
    batch = ground_batch(size=16) if batch is None else batch
    threat = parse_threat(text, spec, **tables)  # type: ignore[arg-type]
    model = linear_model(unit=spec.unit)
    adv = PGD(steps=8)(model, batch, threat, Keys(0, batch.chips))
    assert accuracy(model, batch, adv).mean() < accuracy(model, batch).mean(), "the attack does nothing"
    assert torch.allclose(threat.project(adv, batch.image, batch.seen), adv, atol=2e-6)
    return adv - batch.image, batch


def test_a_share_of_each_bands_noise_or_range() -> None:
    noise, _ = attacked("linf 2x noise", noise={"B02": 0.01, "B03": 0.02})
    assert [float(f"{n:.4f}") for n in noise.abs().amax((0, 2, 3))] == [0.02, 0.04]
    noise, _ = attacked("linf 5% range", ranges={"B02": 0.4, "B03": 0.8})
    assert [float(f"{n:.4f}") for n in noise.abs().amax((0, 2, 3))] == [0.02, 0.04]
    assert parse_threat("linf 1x noise", S2).eps == tuple(band_noise(S2.bands)[band] for band in S2.bands)


def test_l2_is_over_the_image() -> None:
    noise, _ = attacked("l2 0.3 reflectance")
    assert torch.allclose(noise.flatten(1).norm(dim=1), torch.tensor(0.3), rtol=1e-3)


def test_a_subset_of_bands() -> None:
    noise, _ = attacked("linf 5% reflectance bands=B03")
    assert noise[:, 0].abs().max() == 0 < noise[:, 1].abs().max() <= 0.05 + 1e-6


def test_only_clouds_and_only_a_patch() -> None:
    noise, batch = attacked("linf 10% reflectance region=clouds:0.3")
    dark = batch.image.mean(1) <= 0.3
    assert noise.movedim(1, -1)[dark].abs().max() == 0
    noise, _ = attacked("linf 10% reflectance region=patch:2,3,8,9")
    assert noise[:, :, 2:10, 3:12].abs().max() > 0.05
    noise[:, :, 2:10, 3:12] = 0
    assert noise.abs().max() == 0


def test_speckle_is_multiplicative_in_power() -> None:
    batch = ground_batch(size=16)
    noise, _ = attacked("speckle 0.05x noise", S1, batch, noise={"VV": 1.0, "VH": 2.0})
    assert noise[:, 0].abs().max() <= 0.05 + 1e-6 and 0.05 < noise[:, 1].abs().max() <= 0.1 + 1e-6
    factor = 10 ** (noise / 10)  # what the power is multiplied with: the same bound for bright and dark pixels
    assert factor[:, 0].max() <= 10**0.005 + 1e-6 and factor[:, 0].min() >= 10**-0.005 - 1e-6
    with pytest.raises(UsageError, match="dB for speckle"):
        parse_threat("speckle 1 reflectance", S2)


def test_haze_brightens_along_its_spectrum() -> None:
    noise, batch = attacked("haze 10% reflectance spectrum=1,0.5")
    assert noise.min() >= 0 and torch.allclose(noise[:, 1], noise[:, 0] / 2, atol=1e-6)
    assert noise.movedim(1, -1)[~batch.seen].abs().max() == 0


def test_each_band_alone_is_one_word_of_a_recipe_and_a_figure_of_the_page() -> None:
    order = {"name": "fgsm", "threats": ["linf 3% reflectance", "linf 3% reflectance bands=each"]}
    recipe = make_recipe({"name": "x", "attacks": [order]})
    texts = [case.threat_text for case in attack_cases(recipe, S2)]
    assert texts == ["linf 3% reflectance", "linf 3% reflectance bands=B02", "linf 3% reflectance bands=B03"]
    assert split_by_band("linf 1% reflectance", S2) == ["linf 1% reflectance"]

    from seawall.evaluation.case import CLEAN_CASE
    from seawall.evaluation.evaluate import evaluate_model
    from seawall.records import RecordLog

    log = RecordLog(Path("/nonexistent/never-written"))
    log.append = lambda records: None  # type: ignore[method-assign, assignment]
    rows = evaluate_model(
        linear_model(),
        [ground_batch(size=16)],
        log=log,
        recipe="r",
        name="m",
        attacks=[CLEAN_CASE, *attack_cases(recipe, S2)],
    )
    (((method, size), damage),) = band_effects(RecordIndex(rows, "water"), "m").items()
    assert (method, size.text, size.facts.bands) == ("fgsm", "linf 3% reflectance", ())
    assert [d.band for d in damage] == ["B02", "B03"]
    assert all(0 <= d.lost <= (d.everything or 0) for d in damage)


def test_every_threat_of_the_docs_reads() -> None:
    """Code in the first column of the page's tables is a threat, with the sensor named in its heading."""
    spec, found = S2, 0
    for row in DOCS.read_text(encoding="utf-8").splitlines():
        if row.startswith("## "):
            bands = ("B02", "B03", "B04", "B08", "B11", "B12")
            spec = (
                ModelSpec(("VV", "VH"), S2.classes, "sigma0_db", 10.0)
                if "Sentinel-1" in row
                else ModelSpec(bands, S2.classes, "reflectance", 10.0)
            )
        elif row.startswith("| `") and "=each" not in row:
            text = row.split("`")[1]
            table = dict.fromkeys(spec.bands, 0.5)
            assert parse_threat(text, spec, noise=table, ranges=table, haze=table).radius > 0
            found += 1
    assert found >= 12


@pytest.mark.parametrize(
    "text", ["linf 5000% reflectance", "linf 255 reflectance", "linf 8 reflectance", "linf 1%,2,1%,1% reflectance"]
)
def test_a_budget_beyond_the_whole_range_is_a_slip_of_the_unit(text: str) -> None:
    spec = ModelSpec(("B02", "B03", "B04", "B08"), ("land", "water"), "reflectance", 10.0)
    with pytest.raises(UsageError, match="the whole range"):
        parse_threat(text, spec)
    assert parse_threat("linf 100% reflectance", spec).eps == 1.0


def test_a_budget_in_decibel_beyond_any_two_pixels_is_refused() -> None:
    spec = ModelSpec(("VV",), ("land", "water"), "sigma0_db", 10.0)
    with pytest.raises(UsageError, match="the whole range"):
        parse_threat("linf 255 dB", spec)
    assert parse_threat("linf 20 dB", spec).eps == 20.0

"""An index and a label rule that one file brings work wherever labels are made, and in the model `threshold`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

import seawall
from seawall import registry
from seawall.data.chips import ChipFolder
from seawall.data.loader import whole_chips
from seawall.labels.rules import RuleLabel
from seawall.labels.water_indices import BandPlane, WaterIndex
from seawall.models.water_index import extreme_images
from seawall.pipeline.validate import validate_recipe
from seawall.recipe.recipe import make_recipe
from seawall.registry import build, register
from seawall.rng import Keys
from seawall.threat.model import ThreatModel
from seawall.types import ModelSpec


@pytest.fixture(autouse=True)
def dropped_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register what two files in `labels/` would; undone after each test."""
    for kind in registry.HOMES:  # a kind that is first loaded later would be lost with the copy
        list(registry.entries(kind))
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))

    @register("water-index", "redness")
    @dataclass(frozen=True)
    class Redness(WaterIndex):
        """Red times a weight, with water below."""

        weight: float = 1.0
        name = "redness"
        roles = ("B04",)
        slopes = (1,)
        sign = -1
        threshold = 0.05

        def formula(self, *bands: BandPlane) -> BandPlane:
            return bands[0] * self.weight

    @register("label-rule", "dark", smoke={"below": 0.1})
    @dataclass(frozen=True)
    class Dark:
        """Water where the brightest band is below a reflectance."""

        below: float

        def __call__(self, image: np.ndarray, seen: np.ndarray, bands: Sequence[str], unit: str) -> RuleLabel:
            return RuleLabel(np.where(seen, image.max(0) < self.below, 255).astype(np.uint8), f"below {self.below:g}")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return simulated chips with their true labels."""
    out = tmp_path_factory.mktemp("images") / "true"
    seawall.curate("2", out=out)
    return out


@pytest.mark.parametrize(
    ("text", "band", "factor", "at"),
    [
        ("redness <= 0.06", "B04", 1, np.float32(0.06)),
        ("redness weight=2.0 < 0.06", "B04", 2, np.float32(0.06)),
        ("dark below=0.1", None, 1, np.float32(0.1)),
    ],
)
def test_chips_are_labelled_by_it(
    text: str, band: str | None, factor: int, at: float, images: Path, tmp_path: Path
) -> None:
    found = seawall.curate("2", out=tmp_path / "chips", labels=text)
    assert not found.failed
    chips = ChipFolder.open(tmp_path / "chips")
    chip = chips.read(chips.ids[0])
    values = chip.image.max(0) if band is None else factor * chip.image[chips.bands.index(band)]
    assert np.array_equal(chip.label[chip.seen] == 1, (values <= at if "<=" in text else values < at)[chip.seen])
    assert 0.0 < (chip.label[chip.seen] == 1).mean() < 1.0
    assert chips.row(chip.id).notes[-1].startswith("below 0.1" if band is None else f"labelled by {text}: ")
    recipe = {"name": "mine", "data": {"source": "simulated", "labels": text}}
    validate_recipe(make_recipe(recipe | {"baselines": [{"name": "threshold", "settings": {"index": "redness"}}]}))
    batch = next(iter(whole_chips(ChipFolder.open(images), ChipFolder.open(images).ids[:1])))
    noise = build("noise", "index-threshold", {"bands": chips.bands, "rule": text})
    noisy = noise(batch, Keys(0, batch.chips))
    assert np.array_equal(noisy.label[0].numpy()[chip.seen], chip.label[chip.seen])


def test_the_threshold_model_takes_the_index_with_its_exact_worst_case() -> None:
    spec = ModelSpec(("B03", "B04"), ("land", "water"), "reflectance", 10.0)
    model = build("model", "threshold", {"index": "redness weight=2", "threshold": 0.1})(spec)
    image = torch.tensor([0.02, 0.04, 0.06, 0.08])[None, None, None].repeat(1, 2, 1, 1)
    assert model(image).argmax(1).flatten().tolist() == [1, 1, 0, 0]
    ball = ThreatModel("linf", 0.015).around(image, torch.ones(1, 1, 4, dtype=torch.bool))
    maps = torch.stack([model(worst).argmax(1).flatten() for worst in extreme_images(model, ball)])
    assert maps.amin(0).tolist() == [1, 0, 0, 0] and maps.amax(0).tolist() == [1, 1, 1, 0]


def test_an_index_without_slopes_has_no_exact_worst_case() -> None:
    @register("water-index", "product")
    @dataclass(frozen=True)
    class Product(WaterIndex):
        """Green times red."""

        name = "product"
        roles = ("green", "red")

        def formula(self, *bands: BandPlane) -> BandPlane:
            return bands[0] * bands[1]

    spec = ModelSpec(("B03", "B04"), ("land", "water"), "reflectance", 10.0)
    model = build("model", "threshold", {"index": "product"})(spec)
    image = torch.full((1, 2, 2, 2), 0.1)
    ball = ThreatModel("linf", 0.01).around(image, torch.ones(1, 2, 2, dtype=torch.bool))
    assert extreme_images(model, ball) == ()

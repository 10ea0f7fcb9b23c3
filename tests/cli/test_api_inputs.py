"""In Python every verb takes text where it takes a path, and an attack takes what people have instead of a Batch."""

import inspect
from pathlib import Path

import pytest
import torch
from torch import nn

import seawall
from seawall import api
from seawall.data.loader import whole_chips
from seawall.errors import DataError, ModelError
from seawall.models.water_index import WaterIndexThreshold
from seawall.types import Batch, ModelSpec

SMALL = (
    "model.name=unet", "model.settings.width=4", "model.settings.depth=2", "training.settings.epochs=1", "training.settings.steps_per_epoch=2",
    "training.settings.patch=32", "training.settings.batch=2",
)  # fmt: skip
THREAT = "linf 1% reflectance"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with chips and weights, made with text alone."""
    home = str(tmp_path_factory.mktemp("text"))
    api.curate("6", out=f"{home}/chips", bands=("B03", "B08", "B11"))
    api.train(f"{home}/chips", out=f"{home}/run", changes=SMALL)
    return home


def test_every_path_of_every_verb_may_be_text() -> None:
    for verb in api.VERBS:
        for parameter in inspect.signature(verb).parameters.values():
            if "Path" in str(parameter.annotation):
                assert "str" in str(parameter.annotation), f"{verb.__name__}({parameter.name})"


def test_verbs_with_text_do_what_they_do_with_paths(home: str) -> None:
    weights, chips = f"{home}/run/models/unet/model.safetensors", f"{home}/chips"
    same = api.evaluate(Path(weights), Path(chips), out=Path(home, "e1"))
    assert api.evaluate(weights, chips, out=f"{home}/e2").table == same.table
    attacked = api.attack(weights, chips, THREAT, method=("fgsm",), out=f"{home}/a", sanity_checks=False)
    assert {row["method"] for row in attacked.table} >= {"clean", "fgsm"}
    assert api.corrupt(chips, noise=("erode 10%",), out=f"{home}/wrong").facts["chips"] == 6
    labels = [f"{root}/labels/{next(Path(chips, 'labels').glob('*.tif')).name}" for root in (chips, f"{home}/wrong")]
    assert api.compare_labels(*labels, out=f"{home}/differ.tif").facts
    assert Path(home, "differ.tif").is_file()
    assert api.audit_labels(chips, weights=weights, out=f"{home}/audit", worst=1).table


def test_predict_and_report_take_text(home: str) -> None:
    recipe = Path(home, "tiny.toml")
    lines = [
        'name = "tiny"',
        "[data]",
        "count = 6",
        "size = 64",
        'bands = ["B03", "B08", "B11"]',
        "[scene]",
        "size = 128",
    ]
    recipe.write_text("\n".join(lines))
    done = api.run(str(recipe), out=f"{home}/runs", changes=SMALL)
    page = Path(str(done.facts["report"]))
    assert api.report(str(page.parent)).facts["report"] == str(page)
    weights = str(page.parent / "models/unet/model.safetensors")
    mapped = api.predict(weights, str(page.parent / "scenes/input-128.tif"), out=f"{home}/maps")
    paths = {name: path for name, path in mapped.facts.items() if name != "input-128 area"}
    assert len(paths) == 5 and all(Path(str(path)).is_file() for path in paths.values())


def test_an_attack_takes_samples_of_other_libraries(home: str) -> None:
    weights = f"{home}/run/models/unet/model.safetensors"
    folder = seawall.ChipFolder.open(f"{home}/chips")
    batch = next(iter(whole_chips(folder, folder.ids[:2], 2)))
    batch = Batch.of(batch.image, batch.label, valid=batch.valid)
    label = torch.where(batch.valid, batch.label, torch.zeros_like(batch.label))

    def table(data: object) -> object:
        rows = api.attack(weights, data, THREAT, method=("fgsm",), sanity_checks=False).table  # type: ignore[arg-type]
        return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]

    whole_batch = table(Batch.of(batch.image, label))
    assert table({"image": batch.image, "mask": label[:, None].to(torch.uint8)}) == whole_batch
    assert table((batch.image.double(), label.bool())) == whole_batch
    with pytest.raises(DataError, match="digital numbers"):
        table((batch.image * 10000, label))
    with pytest.raises(DataError, match="Batch"):
        table(7)


def test_a_bare_module_is_told_to_be_adapted() -> None:
    batch = Batch.of(torch.rand(1, 2, 16, 16) * 0.3, torch.zeros(1, 16, 16, dtype=torch.long))
    with pytest.raises(ModelError, match="adapt"):
        seawall.attack(nn.Conv2d(2, 2, 1), batch, THREAT)  # type: ignore[arg-type]
    spec = ModelSpec(("B03", "B08"), ("land", "water"), "reflectance", 10.0)
    assert seawall.attack(WaterIndexThreshold(index="ndwi")(spec), batch, THREAT, sanity_checks=False).table

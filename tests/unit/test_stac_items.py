"""The items of a map and of its model are valid STAC 1.1, and so is what each declared extension adds, offline.

The core schemas are those that pystac carries, the extensions' lie in `tests/stac_schemas`. What the schema of the
machine-learning model extension does not express is written out here after its specification,
https://github.com/stac-extensions/mlm. The raster extension's version 2 is in no package: its two fields are checked by hand.
"""

import hashlib
import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from affine import Affine

from seawall.geo.raster import Grid, write_cog
from seawall.inference.predict import predict_scene
from seawall.models.unet import UNet
from seawall.models.water_index import WaterIndexThreshold
from seawall.models.weights import load_model, save_model
from seawall.types import ModelSpec
from seawall.uncertainty.temperature import Temperature

SCHEMAS = Path(__file__).parents[1] / "stac_schemas"
RASTER = "https://stac-extensions.github.io/raster/v2.0.0/schema.json"
SPEC = ModelSpec(("B03", "B08"), ("land", "water"), "reflectance", 10.0)
GRID = Grid(48, 40, Affine(10, 0, 500000, 0, -10, 5000000), "EPSG:32633")
ITEM_FIELDS = {"mlm:name", "mlm:architecture", "mlm:tasks", "mlm:framework", "mlm:framework_version", "mlm:memory_size",
               "mlm:total_parameters", "mlm:pretrained", "mlm:pretrained_source", "mlm:batch_size_suggestion",
               "mlm:accelerator", "mlm:accelerator_constrained", "mlm:accelerator_summary", "mlm:accelerator_count",
               "mlm:input", "mlm:output", "mlm:hyperparameters"}  # fmt: skip
SCALINGS = {"z-score": {"mean", "stddev"}, "min-max": {"minimum", "maximum"}, "offset": {"value"}, "scale": {"value"}}


def unet():
    model = UNet(width=2, depth=1)(SPEC)
    model.standardize.fit([0.1, 0.2], [0.05, 0.3])
    return model.eval()


def make(tmp_path, model, name="S2A_MSIL2A_20230815T101031_T33", **settings):
    data = np.random.default_rng(0).random((2, 48, 40), dtype=np.float32) * 0.4
    write_cog(tmp_path / f"{name}.tif", data, GRID, bands=SPEC.bands, nodata=float("nan"))
    out = tmp_path / "out"
    result = predict_scene(model, tmp_path / f"{name}.tif", out, **settings)
    item = json.loads((out / f"{result.name}.json").read_text())
    (link,) = [link for link in item["links"] if link["rel"] == "mlm:model"]
    path = out / link["href"]
    return item, json.loads(path.read_text()), path, out


def extension_schemas():
    """Return the published schemas by the address under which an item declares them."""
    return {
        f"https://stac-extensions.github.io/{name}/v{version}/schema.json": json.loads(path.read_text())
        for path in SCHEMAS.glob("*.json")
        for name, _, version in (path.stem.partition("-"),)
    }


def check_schemas(item):
    """Validate an item against the core schema and against that of every extension it declares, offline."""
    jsonschema = pytest.importorskip("jsonschema", reason="the test extra brings it")
    referencing = pytest.importorskip("referencing", reason="jsonschema brings it")
    from pystac.validation.local_validator import LocalValidator, get_local_schema_cache

    errors = [error.message for error in LocalValidator().item_validator("1.1.0").iter_errors(item)]
    assert errors == []
    known = {**get_local_schema_cache(), **extension_schemas()}
    # The model extension names an older version of the classification extension for one definition that did not change.
    classification = "https://stac-extensions.github.io/classification/v{}/schema.json"
    known[classification.format("1.1.0")] = known[classification.format("2.0.0")]
    known["https://proj.org/schemas/v0.7/projjson.schema.json"] = {}  # no item holds PROJJSON
    draft7 = referencing.jsonschema.DRAFT7
    registry = referencing.Registry().with_resources((uri, draft7.create_resource(known[uri])) for uri in known)
    for uri in item["stac_extensions"]:
        if uri == RASTER:
            continue
        validator = jsonschema.Draft7Validator(known[uri], registry=registry)
        assert [error.message for error in validator.iter_errors(item)] == [], uri
    for asset in item["assets"].values():
        given = {name: value for name, value in asset.items() if name.startswith("raster:")}
        assert set(given) <= {"raster:scale", "raster:offset"}
        assert all(isinstance(value, float) for value in given.values())


def check_mlm(item):
    """Hold an item against the rules of the extension for machine-learning models."""
    assert any(re.search(r"/mlm/v1\.[0-9.]+/schema\.json$", uri) for uri in item["stac_extensions"])
    said = item["properties"]
    assert {"mlm:name", "mlm:architecture", "mlm:tasks", "mlm:input", "mlm:output"} <= set(said)
    assert {name for name in said if name.startswith("mlm:")} <= ITEM_FIELDS
    assert re.fullmatch(r"[a-zA-Z][a-zA-Z0-9_.\-\s]+[a-zA-Z0-9]", said["mlm:name"])
    if "mlm:framework_version" in said:
        assert re.fullmatch(r"\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?", said["mlm:framework_version"])
    if "mlm:hyperparameters" in said:
        assert said["mlm:hyperparameters"]
        assert all(re.fullmatch(r"[0-9a-zA-Z_.-]+", key) for key in said["mlm:hyperparameters"])
    models = [asset for asset in item["assets"].values() if "mlm:model" in asset.get("roles", ())]
    assert models
    for asset in item["assets"].values():  # an artifact is named where there is one, and nowhere else
        assert ("mlm:artifact_type" in asset) == (asset in models)
        assert not {"mlm:name", "mlm:input", "mlm:output", "mlm:hyperparameters"} & set(asset)
    named = {band["name"] for asset in models for band in asset["bands"]}
    for given in said["mlm:input"]:
        assert set(given["bands"]) <= named
        assert ("bands" in given["input"]["dim_order"]) == bool(given["bands"])
        scaling = given.get("value_scaling")
        if scaling is not None:
            assert isinstance(scaling, list)
            assert len(scaling) in (1, len(given["bands"]))
            for one in scaling:
                assert SCALINGS[one["type"]] <= set(one)
    for made in said["mlm:output"]:
        assert len(made["result"]["shape"]) == len(made["result"]["dim_order"])


@pytest.mark.parametrize(
    "model", [unet(), Temperature(2.0)(unet()), WaterIndexThreshold()(SPEC)], ids=["net", "wrapped", "rule"]
)
def test_both_items_are_valid(tmp_path, model):
    item, about, _, _ = make(tmp_path, model)
    for one in (item, about):
        check_schemas(one)
    check_mlm(about)
    # the rule of the core schema that is easily broken: bands of an item need an asset that has bands
    assert "bands" not in about["properties"] or any("bands" in asset for asset in about["assets"].values())


def test_the_ground_sampling_distance_is_that_of_the_training_pixels(tmp_path):
    """A model trained at 30 m may map a scene of 10 m pixels; the item of the model has the model's distance."""
    coarse = UNet(width=2, depth=1)(ModelSpec(SPEC.bands, SPEC.classes, SPEC.unit, 30.0))
    coarse.standardize.fit([0.1, 0.2], [0.05, 0.3])
    assert make(tmp_path, coarse.eval())[1]["properties"]["gsd"] == 30.0


def test_the_asset_is_the_weights(tmp_path):
    model = unet()
    _, about, path, _ = make(tmp_path, model)
    asset = about["assets"]["weights"]
    weights = path.parent / unquote(asset["href"])
    assert asset["file:checksum"] == "1220" + hashlib.sha256(weights.read_bytes()).hexdigest()
    assert asset["file:size"] == weights.stat().st_size
    again = load_model(weights)
    assert again.spec == model.spec
    assert [band["name"] for band in asset["bands"]] == ["B03", "B08"]


def test_weights_that_lie_somewhere_are_linked_and_not_copied(tmp_path):
    where = tmp_path / "my weights.safetensors"
    save_model(where, unet())
    _, about, path, out = make(tmp_path, load_model(where), weights=where)
    assert (path.parent / unquote(about["assets"]["weights"]["href"])).resolve() == where.resolve()
    assert not list(out.rglob("*.safetensors"))


def test_scaling_is_what_the_model_subtracts_and_divides_by(tmp_path):
    _, about, _, _ = make(tmp_path, unet())
    scaling = about["properties"]["mlm:input"][0]["value_scaling"]
    assert [one["type"] for one in scaling] == ["z-score", "z-score"]
    assert [one["mean"] for one in scaling] == pytest.approx([0.1, 0.2])
    assert [one["stddev"] for one in scaling] == pytest.approx([0.05, 0.3])
    _, about, _, _ = make(tmp_path, WaterIndexThreshold()(SPEC), name="b")
    assert about["properties"]["mlm:input"][0]["value_scaling"] is None


def test_a_map_is_derived_from_its_scene_and_times_are_no_inventions(tmp_path):
    item, about, _, out = make(tmp_path, unet(), name="my scene")
    (source,) = [link for link in item["links"] if link["rel"] == "derived_from"]
    assert (out / unquote(source["href"])).resolve() == (tmp_path / "my scene.tif").resolve()
    assert item["properties"]["datetime"] is None
    assert item["properties"]["start_datetime"] < item["properties"]["end_datetime"]
    written = datetime.fromisoformat(about["properties"]["datetime"])
    assert abs(datetime.now(UTC) - written) < timedelta(minutes=10)
    assert "start_datetime" not in about["properties"]


@pytest.mark.parametrize(
    ("which", "break_it"),
    [
        ("model", lambda item: item["properties"].pop("mlm:architecture")),
        ("model", lambda item: item["properties"]["mlm:input"][0].update(value_scaling=[{"type": "z-score"}])),
        ("model", lambda item: item["assets"]["weights"].update({"file:size": "many"})),
        ("model", lambda item: item["assets"]["weights"].pop("mlm:artifact_type")),
        ("map", lambda item: item["properties"].update({"proj:shape": [1.5, 2]})),
        ("map", lambda item: item["properties"].update({"processing:software": "seawall"})),
        ("map", lambda item: item["assets"]["class"]["classification:classes"][0].pop("value")),
    ],
)
def test_the_schemas_see_what_is_wrong(tmp_path, which, break_it):
    item, about, _, _ = make(tmp_path, unet())
    one = about if which == "model" else item
    check_schemas(one)
    break_it(one)
    with pytest.raises(AssertionError):
        check_schemas(one)

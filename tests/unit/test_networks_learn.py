"""Each network learns a simulated lake, takes any bands and classes, is built again from its spec, and becomes an ONNX file."""

import importlib.util
import logging
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from seawall.inference.backends import export_onnx
from seawall.registry import build
from seawall.simulate.scene import simulate_s2
from seawall.types import ModelSpec, Setting

BANDS = ("B03", "B08", "B11")
SPEC = ModelSpec(BANDS, ("land", "water"), "reflectance", 10.0)
FC: dict[str, Setting] = {"width": 8, "fc": 32, "dropout": 0.0}
NETWORKS: dict[str, dict[str, Setting]] = {
    "fcn-32s": FC, "fcn-16s": FC, "fcn-8s": FC, "fcn-alexnet": {"width": 24, "fc": 64, "dropout": 0.0},
    "segnet": {"width": 8}, "patch-classifier": {"width": 8, "patch": 33}, "dense-labeling": {"width": 16, "patch": 33},
    "segformer": {"widths": [16, 16, 32, 32], "depths": [1, 1, 1, 1], "heads": [1, 1, 2, 2], "decoder": 32, "dropout": 0.0},
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_it_learns_a_lake_by_heart(name: str) -> None:
    scene = simulate_s2("lake1", 256, BANDS, clouds=False)
    image = torch.from_numpy(scene.image[None, :, :64, 64:128].copy())
    water = torch.from_numpy(scene.water[None, :64, 64:128].copy())
    torch.manual_seed(0)
    model = build("model", name, NETWORKS[name])(SPEC)
    model.standardize.fit(image.mean((0, 2, 3)), image.std((0, 2, 3)))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(60):
        optimizer.zero_grad()
        functional.cross_entropy(model(image), water.long()).backward()
        optimizer.step()
    with torch.no_grad():
        found = model.eval()(image).argmax(1) == 1
    assert int((found & water).sum()) / int((found | water).sum()) > 0.95


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("bands", "classes"), [(1, 2), (13, 5)])
def test_any_number_of_bands_and_classes_and_the_spec_builds_it_again(name: str, bands: int, classes: int) -> None:
    spec = ModelSpec(tuple(f"x{i}" for i in range(bands)), tuple(f"k{i}" for i in range(classes)), "reflectance", 10.0)
    make = build("model", name, NETWORKS[name])
    model = make(spec).eval()
    assert model(torch.rand(2, bands, 17, 30)).shape == (2, classes, 17, 30)
    again = build("model", model.spec.architecture, model.spec.settings)
    assert again == make and model.spec.architecture == name
    again(spec).load_state_dict(model.state_dict())


@pytest.mark.skipif(
    any(importlib.util.find_spec(package) is None for package in ("onnx", "onnxscript", "onnxruntime")),
    reason="needs the extra deploy",
)
@pytest.mark.slow
@pytest.mark.parametrize("name", ["fcn-8s", "fcn-alexnet", "segnet", "patch-classifier", "dense-labeling", "segformer"])
def test_it_becomes_an_onnx_file_with_the_same_logits(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """The export runs the file on images of two other sizes and refuses one whose logits differ. It warns of nothing."""
    torch.manual_seed(0)
    norm: dict[str, Setting] = {"norm": "local"} if name == "fcn-alexnet" else {}
    export_onnx(build("model", name, NETWORKS[name] | norm)(SPEC).eval(), tmp_path / "model.onnx")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]

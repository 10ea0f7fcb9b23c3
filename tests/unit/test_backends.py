"""The same probabilities from every runtime."""

import importlib.util
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from seawall.errors import ModelError, RunError, UsageError
from seawall.inference.backends import export_onnx, find_device, is_out_of_memory, open_runtime
from seawall.models.clustering import GaussianMixtureClustering
from seawall.models.region_growing import RegionGrowing
from seawall.types import Batch, ModelSpec

needs_deploy = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime", "openvino")),
    reason="needs the extra deploy",
)


class Net(nn.Module):
    """A network with pooling, skip and normalization, small enough to export in a second."""

    def __init__(self, bands=3, classes=2):
        super().__init__()
        self.spec = ModelSpec(("B03", "B08", "B11")[:bands], ("land", "water", "ice")[:classes], "reflectance", 10.0)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.a = nn.Sequential(nn.Conv2d(bands, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
            self.up = nn.ConvTranspose2d(6, 6, 2, 2)
            self.b = nn.Conv2d(12, classes, 3, padding=1)

    def forward(self, image):
        x = self.a(image)
        return self.b(torch.cat([x, self.up(nn.functional.max_pool2d(x, 2))], 1)) * 4


class Constant(Net):
    """Gives what it was told."""

    def forward(self, image):
        return self.told(image)


def images(count=2, side=64):
    return np.random.default_rng(0).uniform(0, 0.5, (count, 3, side, side)).astype(np.float32)


def test_torch_gives_probabilities_and_leaves_the_model_alone():
    model = Net().train()
    with open_runtime(model, device="cpu") as predict:
        made = predict(images())
    assert model.training
    assert made.dtype == np.float32
    assert made.sum(1) == pytest.approx(np.ones((2, 64, 64)), abs=1e-5)
    with torch.no_grad():
        expected = model.eval()(torch.from_numpy(images())).softmax(1).numpy()
    assert made == pytest.approx(expected, abs=1e-6)


def test_the_model_is_left_alone_after_an_error_too():
    model = Constant().train()
    model.told = lambda image: image[:, :2, ::2]
    with open_runtime(model, device="cpu") as predict, pytest.raises(ModelError, match="expected logits of shape"):
        predict(images())
    model.told = lambda image: {"out": image}
    with open_runtime(model, device="cpu") as predict, pytest.raises(ModelError, match="got dict"):
        predict(images())
    assert model.training


@needs_deploy
@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_other_runtimes_agree_with_torch(runtime):
    model = Net(classes=3)
    with open_runtime(model, "torch", device="cpu") as predict:
        expected = [predict(images()), predict(images(1, 96))]
    with open_runtime(model, runtime) as predict:
        made = [predict(images()), predict(images(1, 96))]
    for one, other in zip(made, expected, strict=True):
        assert one == pytest.approx(other, abs=1e-5)
        assert (one.argmax(1) == other.argmax(1)).mean() > 0.9999


@needs_deploy
def test_clusters_are_exported_with_their_textures_and_regions_are_refused(tmp_path):
    spec, image = Net().spec, torch.from_numpy(images(2, 24))
    chips = [Batch.of(image, (image[:, 0] > image[:, 1]).long())]
    model = GaussianMixtureClustering(clusters=3, space="both", window=3)(spec)
    model.fit(chips)
    with open_runtime(model, "onnx") as predict:
        assert predict(images()) == pytest.approx(model(torch.from_numpy(images())).softmax(1).numpy(), abs=1e-5)
    regions = RegionGrowing(prototypes=2)(spec)
    regions.fit(chips)
    with pytest.raises(ModelError, match="ONNX can express"):
        export_onnx(regions, tmp_path / "net.onnx")


@needs_deploy
def test_an_exported_file_is_one_file_that_names_its_ends(tmp_path):
    import onnx

    export_onnx(Net(), tmp_path / "net.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]
    graph = onnx.load(tmp_path / "net.onnx").graph
    assert [i.name for i in graph.input] == ["image"]
    assert [o.name for o in graph.output] == ["logits"]
    batch, bands, *_ = graph.input[0].type.tensor_type.shape.dim
    assert (batch.dim_param != "", bands.dim_value) == (True, 3)


@needs_deploy
def test_a_network_that_cannot_be_exported_says_so(tmp_path):
    model = Constant()
    model.told = lambda image: image[:, :2] if float(image.mean()) > 0 else image[:, 1:]
    with pytest.raises(ModelError, match="ONNX can express"):
        export_onnx(model, tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_is_refused(monkeypatch):
    model = Net()
    cases = [
        ({"runtime": "tensorrt"}, "unknown name"),
        ({"runtime": "onnx", "disagreement": True}, "expected torch"),
        ({"device": "gpu7"}, "device of this machine"),
        ({"runtime": "onnx", "device": "cuda"}, "expected cpu"),
    ]
    for settings, message in cases:
        with pytest.raises(UsageError, match=message), open_runtime(model, **settings):
            pass
    with pytest.raises(ModelError, match="ModelSpec"), open_runtime(nn.Identity()):
        pass


@needs_deploy
def test_a_signal_is_survived_after_another_thread_let_openvino_go(tmp_path):
    export_onnx(Net(), tmp_path / "net.onnx")
    code = (
        "import gc, signal, sys, threading\n"
        "from pathlib import Path\n"
        "import numpy as np\n"
        "from seawall.inference.backends import load_exported\n"
        "held = [load_exported(Path(sys.argv[1]), 'openvino')]\n"
        "held[0](np.zeros((1, 3, 64, 64), np.float32))\n"
        "release = threading.Thread(target=lambda: (held.clear(), gc.collect()))\n"
        "release.start(), release.join()\n"
        "signal.signal(signal.SIGTERM, lambda *_: print('handled', flush=True))\n"
        "signal.raise_signal(signal.SIGTERM)"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "net.onnx")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr


def test_a_missing_extra_is_named(monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr("seawall.inference.backends.importlib.import_module", missing)
    with pytest.raises(RunError, match=r"pip install 'seawall\[deploy\]'"), open_runtime(Net(), "openvino"):
        pass


def test_what_counts_as_out_of_memory():
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("x"))
    assert is_out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"))
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    assert not is_out_of_memory(ValueError("out of memory"))
    assert find_device("auto").type in ("cpu", "cuda", "mps")

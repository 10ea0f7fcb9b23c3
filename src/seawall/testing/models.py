"""What every segmentation model must keep."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from seawall.models.weights import load_model, save_model, spec_of
from seawall.registry import Entry
from seawall.testing.assertions import made, quiet_random, same_bits
from seawall.testing.fixtures import BANDS
from seawall.types import Architecture, ModelSpec

MODEL_SPEC = ModelSpec(BANDS, ("land", "water"), "reflectance", 10.0)
SIZES = ((1, 1), (7, 5), (16, 16), (17, 33))


def check_logits_of_any_size(entry: Entry) -> None:
    """Images of every size give finite logits (B, K, H, W), and the module has the specification that it was built for."""
    model = _model(entry)
    spec = spec_of(model)
    assert (spec.bands, spec.classes, spec.unit) == (MODEL_SPEC.bands, MODEL_SPEC.classes, MODEL_SPEC.unit)
    for height, width in SIZES:
        logits = model(_image(2, height, width))
        assert logits.shape == (2, 2, height, width), f"expected {(2, 2, height, width)}, got {tuple(logits.shape)}"
        assert bool(logits.isfinite().all()), f"the logits of {height} x {width} pixels are not finite"


def check_images_are_alone_in_evaluation(entry: Entry) -> None:
    """In evaluation mode an image has the same logits alone and in a batch."""
    model, image = _model(entry), _image(3, 16, 16)
    whole = model(image)
    for i in range(3):
        assert torch.allclose(whole[i : i + 1], model(image[i : i + 1]), atol=1e-5), "logits depend on the batch"


def check_evaluation_is_deterministic(entry: Entry) -> None:
    """Two passes are equal to the bit, draw nothing, and leave the image as it is."""
    model, image = _model(entry), _image(2, 16, 16)
    before = image.clone()
    with quiet_random():
        first = model(image)
    assert same_bits(first, model(image)), "two passes differ"
    assert same_bits(image, before), "the model wrote to its image"


def check_gradient_reaches_the_image(entry: Entry) -> None:
    """The logits have a finite gradient to the image that is not zero everywhere: the model can be attacked."""
    image = _image(2, 16, 16).requires_grad_()
    (grad,) = torch.autograd.grad(_model(entry)(image)[:, 1].sum(), image)
    assert bool(grad.isfinite().all()) and bool((grad != 0).any()), "the gradient is not finite or zero everywhere"


def check_nothing_beyond_the_receptive_field(entry: Entry) -> None:
    """A pixel farther away than `reach` changes no logit, so that tiles that overlap by it give the whole scene."""
    model = _model(entry)
    reach = getattr(model, "reach", None)
    if reach is None:
        return
    size = 4 * (reach // 4 + 2)
    image = _image(1, size, size)
    other = image.clone()
    other[..., -1, -1] = 0.9
    apart = (model(image) - model(other)).abs().amax(1)[0]
    far = size - 1 - reach
    apart = apart.detach()
    assert float(apart[:far].max()) <= 1e-6 and float(apart[:, :far].max()) <= 1e-6, (
        f"it sees farther than {reach} pixels"
    )


def check_weights_travel(entry: Entry) -> None:
    """Saved and loaded again, the model has the same specification and the same logits to the bit."""
    model, image = _model(entry), _image(1, 16, 16)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_model(path, model)
        again = load_model(path)
    assert again.spec == model.spec, f"expected {model.spec}, got {again.spec}"
    assert same_bits(model(image), again.eval()(image)), "the loaded model has other logits"


def _model(entry: Entry) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return made(entry, Architecture)(MODEL_SPEC).eval()


def _image(count: int, height: int, width: int) -> Tensor:
    draw = torch.Generator().manual_seed(7)
    return 0.05 + 0.3 * torch.rand(count, len(BANDS), height, width, generator=draw)


CHECKS = [value for name, value in list(globals().items()) if name.startswith("check_")]

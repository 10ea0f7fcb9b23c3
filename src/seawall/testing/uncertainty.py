"""What every estimator of uncertainty must keep."""

from __future__ import annotations

import math
from copy import deepcopy
from typing import cast

import torch
from torch import Tensor, nn

from seawall.registry import Entry
from seawall.testing.assertions import made, quiet_random, same_bits, same_snapshot, snapshot
from seawall.testing.fixtures import ground_batch, uneven_model
from seawall.types import ModelSpec, SegmentationModel, Wrapper
from seawall.uncertainty.build import fitted_estimator
from seawall.uncertainty.ensemble import Ensemble, mean_of_networks
from seawall.uncertainty.predictor import Predictor


def check_is_a_model_of_the_same_task(entry: Entry) -> None:
    """Called like a model it gives finite logits (B, K, H, W), and its specification is the model's."""
    model, image = _model_and_image()
    wrapped = _wrapped(entry, model)
    assert wrapped.spec == model.spec, "the specification changed"
    logits = wrapped(image)
    assert logits.shape == model(image).shape and bool(logits.isfinite().all()), "expected finite logits (B, K, H, W)"


def check_probabilities(entry: Entry) -> None:
    """The probabilities sum to 1; entropy and disagreement of the passes lie within their bounds."""
    model, image = _model_and_image()
    wrapped = _wrapped(entry, model)
    probability = wrapped(image).softmax(1)
    assert torch.allclose(probability.sum(1), torch.ones_like(probability[:, 0]), atol=1e-5)
    if isinstance(wrapped, Predictor):
        maps = wrapped.predict(image)
        assert torch.allclose(maps.probability, probability, atol=1e-4), "map and logits disagree"
        most = math.log(probability.shape[1]) + 1e-5
        assert bool(((maps.entropy >= -1e-6) & (maps.entropy <= most)).all()), "the entropy leaves 0 to ln K"
        assert bool((maps.mutual_information <= maps.entropy + 1e-5).all()), "passes disagree by more than the entropy"


def check_images_do_not_see_each_other(entry: Entry) -> None:
    """A batch equals its images one by one."""
    model, image = _model_and_image()
    wrapped = _wrapped(entry, model)
    whole = wrapped(image)
    for i in range(len(image)):
        assert torch.allclose(whole[i : i + 1], wrapped(image[i : i + 1]), atol=1e-5), "logits depend on the batch"


def check_only_its_keys(entry: Entry) -> None:
    """The same image gives the same logits to the bit, whatever the global random state."""
    model, image = _model_and_image()
    wrapped = _wrapped(entry, model)
    with quiet_random():
        first = wrapped(image)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(999)
        assert same_bits(first, wrapped(image)), "the same image gave other logits"


def check_model_left_as_found(entry: Entry) -> None:
    """Weights, modes and hooks of the model stay."""
    model, image = _model_and_image()
    before = snapshot(model)
    _wrapped(entry, model)(image)
    assert same_snapshot(before, snapshot(model)), "the model changed"


def check_gradient_reaches_the_image(entry: Entry) -> None:
    """The logits have a gradient to the image, so that what is deployed can be attacked as a whole."""
    model, image = _model_and_image()
    image.requires_grad_()
    (grad,) = torch.autograd.grad(_wrapped(entry, model)(image)[:, 1].sum(), image)
    assert bool(grad.isfinite().all()) and bool((grad != 0).any()), "the gradient is not finite or zero everywhere"


class _WithHead(nn.Module):
    """A curved model that ends in a 1 x 1 convolution, as most segmenters do."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = uneven_model()
        self.spec = cast(ModelSpec, self.inner.spec)
        self.head = nn.Conv2d(2, 2, 1)
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor([[1.0, -0.3], [-0.5, 0.8]])[:, :, None, None])
            self.head.bias.zero_()  # type: ignore[union-attr]

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.head(self.inner(image))
        return logits


def _model_and_image() -> tuple[nn.Module, Tensor]:
    return _WithHead().eval(), ground_batch(images=2).image.clone()


def _wrapped(entry: Entry, model: nn.Module) -> nn.Module:
    assert isinstance(model, SegmentationModel)
    method = fitted_estimator(made(entry, Wrapper), model, lambda: [ground_batch(images=2)])
    if isinstance(method, Ensemble):  # whose members are files, which this model cannot be written to
        other = deepcopy(model)
        cast(_WithHead, other).head.weight.data *= 0.7
        return mean_of_networks(model, [other]).eval()
    return method(model).eval()


CHECKS = [value for name, value in list(globals().items()) if name.startswith("check_")]

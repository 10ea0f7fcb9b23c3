"""What every training objective must keep."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from seawall.errors import UsageError
from seawall.losses.auxiliary import TrainingLogits
from seawall.models.blocks import Standardize
from seawall.registry import Entry, build
from seawall.rng import Keys
from seawall.testing.assertions import made, quiet_random, same_batch, same_bits
from seawall.testing.fixtures import (
    TWO_SOURCE_SPEC,
    PixelLinear,
    ground_batch,
    linear_model,
    two_source_batch,
    two_source_model,
)
from seawall.types import AdaptiveObjective, Architecture, Batch, ModelSpec, Objective, SegmentationModel, Setting

OBJECTIVE_SPEC = ModelSpec(("B02", "B03"), ("land", "water"), "reflectance", 10.0)


def check_finite_scalar_with_gradient(entry: Entry) -> None:
    """A finite scalar whose gradient reaches the parameters of the model."""
    model, batch = _objective_inputs(entry)
    value = _value(entry, model, batch)
    assert value.ndim == 0 and bool(value.isfinite()), f"expected a finite scalar, got {value}"
    grads = _gradients(value, model)
    assert all(bool(grad.isfinite().all()) for grad in grads), "a gradient is not finite"
    assert any(bool((grad != 0).any()) for grad in grads), "no parameter has a gradient"


def check_invalid_pixels_mean_nothing(entry: Entry) -> None:
    """Whatever the labels of invalid pixels are, the value is the same."""
    model, batch = _objective_inputs(entry)
    usual = _value(entry, model, batch)
    for label in (0, 1, 255, -1):
        other = replace(batch, label=torch.where(batch.valid, batch.label, label))
        assert same_bits(usual, _value(entry, model, other)), f"label {label} of invalid pixels changed the value"


def check_nothing_valid_is_zero(entry: Entry) -> None:
    """Without valid pixels the value is 0 and no gradient is undefined."""
    model, batch = _objective_inputs(entry)
    value = _value(entry, model, replace(batch, valid=torch.zeros_like(batch.valid)))
    assert float(value.detach()) == 0.0, f"expected 0 without valid pixels, got {value}"
    if value.requires_grad:
        assert all(bool(grad.isfinite().all()) for grad in _gradients(value, model)), "a gradient is not finite"


def check_only_its_keys(entry: Entry) -> None:
    """Randomness comes from the keys alone."""
    model, batch = _objective_inputs(entry)
    with quiet_random():
        first = _value(entry, model, batch)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(999)
        assert same_bits(first, _value(entry, model, batch)), "the same keys gave another value"


def check_inputs_untouched(entry: Entry) -> None:
    """The batch and the weights are not written to."""
    model, batch = _objective_inputs(entry)
    before, weights = batch.copy(), {name: value.clone() for name, value in model.named_parameters()}
    _value(entry, model, batch)
    assert same_batch(batch, before), "the objective wrote to its batch"
    assert all(same_bits(value, weights[name]) for name, value in model.named_parameters()), "it changed a weight"


def check_descent_learns(entry: Entry) -> None:
    """Descent on the value makes a network right more often on the valid pixels that it learns from."""
    model, batch = _objective_inputs(entry)
    before = _right(model, batch)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    for step in range(60):
        gradients = _gradients(_value(entry, model, batch, step), model)
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
    after = _right(model, batch)
    assert after > max(before, 0.75), f"expected more than {max(before, 0.75):.2f} of the pixels, got {after:.2f}"


def check_auxiliary_heads_learn(entry: Entry) -> None:
    """A network's auxiliary heads get a gradient: logits come from `seawall.losses.auxiliary.training_logits`."""
    if "peers" in entry.traits:
        return
    joint = "joint" in entry.traits
    model = _WithAuxiliaryHead(two_source_model() if joint else linear_model())
    batch = two_source_batch(4, 16) if joint else ground_batch(images=4, size=16)
    _, bias = torch.autograd.grad(_value(entry, model, batch), list(model.auxiliary.parameters()))
    assert bool((bias != 0).any()), "the auxiliary head has no gradient"


class _WithAuxiliaryHead(nn.Module):
    """A linear model with an auxiliary head."""

    def __init__(self, linear: PixelLinear) -> None:
        super().__init__()
        self.linear = linear
        self.spec = self.linear.spec
        self.auxiliary = nn.Conv2d(2, 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.linear(image)
        return logits

    def training_logits(self, image: Tensor) -> TrainingLogits:
        return TrainingLogits(self(image), ((0.5, self.auxiliary(image)),))


def check_state_is_plain_and_repeats(entry: Entry) -> None:
    """A measured state survives JSON, is the same when it is measured again, and leaves the model as it was."""
    objective = made(entry, Objective)
    if not isinstance(objective, AdaptiveObjective):
        return
    model, batch = _objective_inputs(entry)
    weights, training = {name: value.clone() for name, value in model.state_dict().items()}, model.training
    first, again = (objective.revise(model, lambda: [batch], 0.9, 0, {}) for _ in range(2))
    assert first == again, "the same model and chips gave another state"
    assert json.loads(json.dumps(first)) == first, "the state is not plain"
    assert objective.revise(model, lambda: [batch], 0.9, 0, first) == first, "a state was revised twice at one time"
    assert model.training == training, "the mode of the model was changed"
    assert all(same_bits(value, weights[name]) for name, value in model.state_dict().items()), "it changed the model"
    value = objective.given(first)(cast(SegmentationModel, model), batch, Keys(0, batch.chips))
    assert value.ndim == 0 and bool(value.isfinite()), f"expected a finite scalar under the state, got {value}"


def _objective_inputs(entry: Entry) -> tuple[nn.Module, Batch]:
    joint = "joint" in entry.traits
    batch = two_source_batch(4, 16) if joint else ground_batch(images=4, size=16)
    small: Mapping[str, Setting] = {"width": 4, "depth": 1, "norm": "pixel"}
    make = build("model", "twins", {"settings": small}) if "peers" in entry.traits else build("model", "unet", small)
    assert isinstance(make, Architecture)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make(TWO_SOURCE_SPEC if joint else OBJECTIVE_SPEC)
    for layer in model.modules():
        if isinstance(layer, Standardize):
            layer.fit(*(([-15.0, 0.3], [6.0, 0.06]) if joint else ([0.3, 0.3], [0.06, 0.06])))
    return model, batch


def _value(entry: Entry, model: nn.Module, batch: Batch, step: int = 0) -> Tensor:
    assert isinstance(model, SegmentationModel)
    return made(entry, Objective)(model, batch, Keys(step, batch.chips))


def _gradients(value: Tensor, model: nn.Module) -> list[Tensor]:
    return list(torch.autograd.grad(value, list(model.parameters()), materialize_grads=True))


def _right(model: nn.Module, batch: Batch) -> float:
    with torch.no_grad():
        right = (model(batch.image).argmax(1) == batch.label)[batch.valid]
    return float(right.float().mean())


def check_joint_needs_several_sources(entry: Entry) -> None:
    """A `joint` objective is about the sources of a chip, and refuses a model of one."""
    if "joint" not in entry.traits:
        return
    try:
        _value(entry, linear_model(), ground_batch())
    except UsageError:
        return
    raise AssertionError("joint: it took a model of one source")


CHECKS = [value for name, value in list(globals().items()) if name.startswith("check_")]

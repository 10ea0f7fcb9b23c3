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
from seawall.models.weights import spec_of
from seawall.registry import Entry, build
from seawall.rng import Keys
from seawall.testing.assertions import made, quiet_random, same_batch, same_bits
from seawall.testing.fixtures import (
    TWO_SOURCE_SPEC,
    ground_batch,
    linear_model,
    two_source_batch,
    two_source_model,
)
from seawall.training.protocols import GuidedObjective, LayeredObjective
from seawall.types import (
    AdaptiveObjective,
    Architecture,
    Batch,
    ModelSpec,
    Objective,
    SegmentationModel,
    Setting,
    TaughtObjective,
    wants_all_bands,
)

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
    """Without valid pixels the value is 0 and no gradient is undefined; with the trait `unlabelled`, without seen ones."""
    model, batch = _objective_inputs(entry)
    none = torch.zeros_like(batch.valid)
    seen = none if "unlabelled" in entry.traits else batch.seen
    value = _value(entry, model, replace(batch, valid=none, seen=seen))
    assert float(value.detach()) == 0.0, f"expected 0 without valid pixels, got {value}"
    if value.requires_grad:
        assert all(bool(grad.isfinite().all()) for grad in _gradients(value, model)), "a gradient is not finite"


def check_unlabelled_pixels_teach(entry: Entry) -> None:
    """With the trait `unlabelled`, seen pixels without a label have a gradient."""
    if "unlabelled" not in entry.traits:
        return
    model, batch = _objective_inputs(entry)
    grads = _gradients(_value(entry, model, replace(batch, valid=torch.zeros_like(batch.valid))), model)
    assert any(bool((grad != 0).any()) for grad in grads), "unlabelled: seen pixels without a label have no gradient"


def check_teacher_is_left_alone(entry: Entry) -> None:
    """A teacher decides the value, gets no gradient, and is not written to, even the counters of its norms."""
    objective = made(entry, Objective)
    if not isinstance(objective, TaughtObjective | GuidedObjective):
        return
    model, batch = _objective_inputs(entry)
    teachers = [_objective_inputs(entry)[0] for _ in range(2)]
    with torch.no_grad():
        for weight in teachers[1].parameters():
            weight.sub_(0.5)  # negated, a layer and its norm would give the same features
    values = []
    for teacher in teachers:
        before = {name: value.clone() for name, value in teacher.state_dict().items()}
        own = cast(SegmentationModel, teacher)
        taught = objective.taught_by(own) if isinstance(objective, TaughtObjective) else objective.guided_by(own)
        value = taught(
            cast(SegmentationModel, model), replace(batch, valid=torch.zeros_like(batch.valid)), Keys(0, batch.chips)
        )
        torch.autograd.backward(value)
        assert all(weight.grad is None for weight in teacher.parameters()), "the teacher has a gradient"
        assert all(same_bits(value, before[name]) for name, value in teacher.state_dict().items()), "it was written to"
        values.append(float(value.detach()))
    assert values[0] != values[1], "another teacher gave the same value"


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
    """Descent on the value makes a network right more often on the valid pixels that it learns from.

    With the trait `image-level` all it is told is which images have water, and it finds some in those alone.
    """
    model, batch = _objective_inputs(entry)
    batch = _image_level_batch(batch) if "image-level" in entry.traits else batch
    before = _right(model, batch)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    for step in range(60):
        gradients = _gradients(_value(entry, model, batch, step), model)
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
    if "image-level" in entry.traits:
        with torch.no_grad():
            share = ((model(batch.image).argmax(1) == 1) & batch.seen).flatten(1).sum(1) / batch.seen.flatten(1).sum(1)
        assert bool((share[2:] > 0.05).all()) and bool((share[:2] < 0.05).all()), f"water in shares {share.tolist()}"
        return
    after = _right(model, batch)
    assert after > max(before, 0.75), f"expected more than {max(before, 0.75):.2f} of the pixels, got {after:.2f}"


def check_auxiliary_heads_learn(entry: Entry) -> None:
    """A network's auxiliary heads get a gradient: logits come from `seawall.losses.auxiliary.training_logits`."""
    if "peers" in entry.traits:
        return
    joint = "joint" in entry.traits
    batch = two_source_batch(4, 16) if joint else ground_batch(images=4, size=16)
    network: nn.Module = two_source_model() if joint else linear_model()
    if isinstance(made(entry, Objective), GuidedObjective):
        network, batch = _objective_inputs(entry)
    model = _WithAuxiliaryHead(network)
    _, bias = torch.autograd.grad(_value(entry, model, batch), list(model.auxiliary.parameters()))
    assert bool((bias != 0).any()), "the auxiliary head has no gradient"


class _WithAuxiliaryHead(nn.Module):
    """A network with an auxiliary head."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.spec = spec_of(network)
        self.auxiliary = nn.Conv2d(2, 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.network(image)
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
    named = wants_all_bands(made(entry, Objective))
    return model, replace(batch, bands=spec_of(model).bands) if named else batch


def _image_level_batch(batch: Batch) -> Batch:
    """Return four images with image-level labels: two of land alone, and two with water too."""
    water = batch.valid & (batch.label == 1)
    land = torch.stack([batch.image[:, band][batch.valid & ~water].mean() for band in range(batch.image.shape[1])])
    dry = torch.tensor([True, True, False, False])[:, None, None]
    image = torch.where((dry & batch.seen & (water | ~batch.valid))[:, None], land[:, None, None], batch.image)
    return replace(batch, image=image, label=(~dry).long().expand_as(batch.label))


def _value(entry: Entry, model: nn.Module, batch: Batch, step: int = 0) -> Tensor:
    assert isinstance(model, SegmentationModel)
    objective = made(entry, Objective)
    if isinstance(objective, GuidedObjective):
        teacher = _objective_inputs(entry)[0]
        objective = objective.guided_by(cast(SegmentationModel, teacher))
    if isinstance(objective, LayeredObjective):
        objective = objective.with_layers(objective.new_layers(model))
    return objective(model, batch, Keys(step, batch.chips))


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

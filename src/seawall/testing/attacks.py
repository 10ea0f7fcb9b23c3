"""What every attack must keep."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from seawall.attacks.universal import SetAttack
from seawall.registry import Entry
from seawall.rng import Keys
from seawall.testing.assertions import made, quiet_random, same_batch, same_bits, same_snapshot, snapshot
from seawall.testing.fixtures import (
    accuracy,
    ground_batch,
    linear_model,
    two_source_batch,
    two_source_model,
    uneven_model,
    worst_accuracy,
)
from seawall.threat.model import ThreatModel
from seawall.threat.region import Patch
from seawall.types import Attack, Batch, SegmentationModel

LINF = ThreatModel("linf", 0.03, low=0.0)
THREATS = {
    "linf": LINF,
    "l2": ThreatModel("l2", 0.2),
    "one band, one patch, upwards": ThreatModel("linf", 0.05, bands=(1,), region=Patch(2, 3, 6, 5), sign="up"),
    "eps per band": ThreatModel("linf", (0.0, 0.04), low=0.25, high=0.35),
    "l2 per band": ThreatModel("l2", (0.1, 0.4)),
    "haze": ThreatModel("linf", 0.04, spectrum=(1.0, 0.5), sign="up"),
}


def check_stays_in_the_threat_set(entry: Entry) -> None:
    """Every threat model is kept: norm, bounds, bands, region, sign, spectrum."""
    model, batch = _uneven(), ground_batch()
    for name, threat in THREATS.items():
        adv = _run_attack(entry, model, batch, threat)
        back = threat.project(adv, batch.image, batch.image_seen)
        assert torch.allclose(adv, back, rtol=0, atol=2e-6), f"{name}: the result leaves the threat set"
        far = threat.distance(adv, batch.image)
        assert bool((far <= threat.radius * (1 + 1e-4) + 1e-6).all()), f"{name}: eps is {threat.radius}, got {far}"


TWO_SOURCE_THREATS = {
    "dB alone": (ThreatModel("linf", 3.0, "sigma0_db", bands=(0,)), (0,)),
    "reflectance alone": (ThreatModel("linf", 0.03, low=0.0, bands=(1,)), (1,)),
    "both": (ThreatModel("linf", (3.0, 0.03), ("sigma0_db", "reflectance")), (0, 1)),
}
"""Threats of chips in two units, each with the bands that it touches."""


def check_sources_are_attacked_apart(entry: Entry) -> None:
    """Of chips of two sources, a threat touches the bands in its unit, and those only where their own source is seen."""
    model, batch = two_source_model(), two_source_batch()
    for name, (threat, touched) in TWO_SOURCE_THREATS.items():
        adv = _run_attack(entry, model, batch, threat)
        back = threat.project(adv, batch.image, batch.image_seen)
        assert torch.allclose(adv, back, rtol=0, atol=2e-6), f"{name}: the result leaves the threat set"
        free = batch.image_seen.clone()
        free[:, [band for band in (0, 1) if band not in touched]] = False
        assert same_bits(adv[~free], batch.image[~free]), (
            f"{name}: it touched other bands, or pixels that are unseen in a band"
        )
        assert bool(adv.isfinite().all()), f"{name}: the result is not finite"


def check_shape_dtype_device_finite_detached(entry: Entry) -> None:
    """The result is an image like the one that came."""
    batch = ground_batch()
    adv = _run_attack(entry, _uneven(), batch)
    assert adv.shape == batch.image.shape, f"expected {tuple(batch.image.shape)}, got {tuple(adv.shape)}"
    assert adv.dtype == batch.image.dtype, f"expected {batch.image.dtype}, got {adv.dtype}"
    assert adv.device == batch.image.device, f"expected {batch.image.device}, got {adv.device}"
    assert bool(adv.isfinite().all()), "the result is not finite"
    assert not adv.requires_grad and adv.grad_fn is None, "the result still hangs on the graph; detach it"


def check_inputs_untouched(entry: Entry) -> None:
    """The batch is not written to, and the result does not share its memory."""
    for threat in (LINF, LINF.scaled(0)):
        batch = ground_batch()
        before = batch.copy()
        adv = _run_attack(entry, _uneven(), batch, threat)
        assert same_batch(batch, before), "the attack wrote to its batch"
        adv.add_(1.0)
        assert same_batch(batch, before), "the result shares memory with the batch"


def check_model_left_as_found(entry: Entry) -> None:
    """Values, gradients, buffers, modes and what wants gradients are as before."""
    model = uneven_model()
    before = snapshot(model)
    _run_attack(entry, model, ground_batch())
    assert same_snapshot(before, snapshot(model)), "the attack changed the model"


def check_model_left_as_found_after_an_exception(entry: Entry) -> None:
    """Also when a forward pass fails, the first or a later one."""
    for failing in (1, 2):
        model = uneven_model()
        seen = [0]

        def fail(module: nn.Module, given: object, seen: list[int] = seen, failing: int = failing) -> None:
            seen[0] += 1
            if seen[0] == failing:
                raise KeyboardInterrupt

        handle = model.register_forward_pre_hook(fail)
        before = snapshot(model)
        try:
            _run_attack(entry, model, ground_batch())
        except KeyboardInterrupt:
            pass
        else:
            assert seen[0] < failing, "the attack swallowed an exception of the model"
        assert same_snapshot(before, snapshot(model)), (
            f"the attack left the model changed after forward {failing} failed"
        )
        handle.remove()


def check_only_its_keys(entry: Entry) -> None:
    """Randomness comes from the keys alone: no global state, the same keys give the same bits."""
    batch = ground_batch()
    with quiet_random():
        first = _run_attack(entry, _uneven(), batch)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(12345)
        assert same_bits(first, _run_attack(entry, _uneven(), batch)), "the same keys gave another result"


def check_images_do_not_see_each_other(entry: Entry) -> None:
    """A batch equals its images one by one, in any order; a noise for a set is one noise whatever the order."""
    if "set" in entry.traits:
        return  # the trait is asserted below
    model, batch = _uneven(), ground_batch()
    whole = _run_attack(entry, model, batch)
    for i in range(len(batch)):
        alone = _run_attack(entry, model, batch.select([i]))
        assert torch.allclose(whole[i : i + 1], alone, rtol=0, atol=1e-6), "an image's attack depends on its batch"
    turned = _run_attack(entry, model, batch.select([2, 0, 1]))
    assert torch.allclose(whole[[2, 0, 1]], turned, rtol=0, atol=1e-6), "an image's attack depends on its place"


def check_labels_of_invalid_pixels_mean_nothing(entry: Entry) -> None:
    """Whatever an invalid pixel's label says, the result is the same."""
    batch = ground_batch()
    first = _run_attack(entry, _uneven(), batch)
    for value in (0, 1, 255, -1):
        other = replace(batch, label=torch.where(batch.valid, batch.label, value))
        assert same_bits(first, _run_attack(entry, _uneven(), other)), (
            f"label {value} of invalid pixels changed the result"
        )


def check_unseen_pixels_never_touched(entry: Entry) -> None:
    """Pixels without data stay as they are, to the bit."""
    batch = ground_batch()
    for name, threat in THREATS.items():
        adv = _run_attack(entry, _uneven(), batch, threat)
        there = ~batch.image_seen.expand_as(adv)
        assert torch.equal(adv[there], batch.image[there]), f"{name}: an unseen pixel was touched"


def check_zero_budget_is_identity(entry: Entry) -> None:
    """eps = 0 gives the clean image, to the bit."""
    batch = ground_batch()
    for threat in (LINF.scaled(0), ThreatModel("l2", 0.0), ThreatModel("linf", (0.0, 0.0))):
        assert same_bits(_run_attack(entry, _uneven(), batch, threat), batch.image), "eps 0 changed the image"


def check_hurts_a_linear_model(entry: Entry) -> None:
    """Accuracy on a linear model falls; a weak attack must not raise it."""
    model, batch = linear_model(), ground_batch(size=16)
    before, after = accuracy(model, batch).mean(), accuracy(model, batch, _run_attack(entry, model, batch)).mean()
    if "weak" in entry.traits:
        assert after <= before + 0.02, f"accuracy rose from {before:.3f} to {after:.3f}"
    else:
        assert after < before, f"accuracy stayed at {before:.3f}"


def check_reaches_the_linear_optimum(entry: Entry) -> None:
    """On a linear two-class model the best linf attack is a corner; an untargeted gradient attack gets there."""
    if entry.traits & {"weak", "black-box", "targeted", "min-norm"}:
        return
    model, batch = linear_model(), ground_batch(size=16)
    least, corner = worst_accuracy(model, batch, LINF)
    got = accuracy(model, batch, _run_attack(entry, model, batch))
    # a pixel on the border may fall either way by rounding
    logits = model(corner).detach()
    border = ((logits[:, 0] - logits[:, 1]).abs() < 1e-4) & batch.valid
    slack = border.flatten(1).sum(1) / batch.valid.flatten(1).sum(1)
    assert bool(((got - least).abs() <= slack + 1e-6).all()), f"the optimum is {least}, got {got}"


def check_smallest_batches(entry: Entry) -> None:
    """One image, one valid pixel, no valid pixel: a defined result inside the set."""
    model, one = _uneven(), ground_batch(images=1)
    lonely = torch.zeros_like(one.valid)
    lonely[tuple(one.valid.nonzero()[0])] = True
    single = replace(one, valid=lonely)
    empty = replace(one, valid=torch.zeros_like(one.valid))
    dark = replace(empty, seen=torch.zeros_like(one.seen), image=torch.zeros_like(one.image))
    for name, batch in (("one image", one), ("one valid pixel", single), ("none valid", empty), ("none seen", dark)):
        adv = _run_attack(entry, model, batch)
        assert adv.shape == batch.image.shape and bool(adv.isfinite().all()), f"{name}: not a finite image"
        assert torch.allclose(adv, LINF.project(adv, batch.image, batch.image_seen), atol=2e-6), (
            f"{name}: outside the set"
        )
    image, label, seen, valid = (torch.cat([part, part]) for part in (one.image, one.label, one.seen, one.valid))
    mixed = Batch(image, label, seen, valid & torch.tensor([True, False])[:, None, None], ("a", "b"))
    assert bool(_run_attack(entry, model, mixed).isfinite().all()), "an image without valid pixels spoils its batch"


def check_works_where_gradients_are_off(entry: Entry) -> None:
    """Inside no_grad and inference_mode, where evaluation loops run, the result is the same."""
    model, batch = _uneven(), ground_batch()
    usual = _run_attack(entry, model, batch)
    with torch.no_grad():
        assert same_bits(usual, _run_attack(entry, model, batch)), "no_grad changed the result"
    with torch.inference_mode():
        assert same_bits(usual, _run_attack(entry, model, batch.copy()).clone()), "inference_mode changed the result"


def check_traits(entry: Entry) -> None:
    """Each declared trait is true."""
    model, batch = _uneven(), ground_batch(size=16)
    if "stochastic" in entry.traits:
        assert not same_bits(_run_attack(entry, model, batch), _run_attack(entry, model, batch, seed=1)), (
            "stochastic: keys change nothing"
        )
    if "black-box" in entry.traits:
        _run_attack(entry, cast(SegmentationModel, _Blind(model)), batch)  # must not ask for gradients
    if "targeted" in entry.traits:
        goal = getattr(made(entry, Attack), "goal", None)
        assert goal is not None and goal.targeted, "targeted: its default goal is not"
    if "weak" in entry.traits:
        linear = linear_model()
        least, _ = worst_accuracy(linear, batch, LINF)
        got = accuracy(linear, batch, _run_attack(entry, linear, batch))
        assert bool((got > least + 1e-6).any()), "weak: it reaches the optimum of a linear model"
    if "set" in entry.traits:
        attack, segmenter = made(entry, SetAttack), cast(SegmentationModel, model)
        ready = attack.fitted(segmenter, [batch], LINF, Keys(0, batch.chips))
        whole = ready(segmenter, batch, LINF, Keys(0, batch.chips))
        for i in range(len(batch)):
            one = batch.select([i])
            alone = ready(segmenter, one, LINF, Keys(1, one.chips))
            assert same_bits(alone, whole[i : i + 1]), "set: the fitted noise depends on what it is put on"
    if "min-norm" in entry.traits:
        wide = ThreatModel("linf", 0.5)
        far = wide.distance(_run_attack(entry, model, batch, wide), batch.image)
        assert bool((far < 0.9 * wide.radius).all()), f"min-norm: it uses the whole budget, {far} of {wide.radius}"


class _Blind(nn.Module):
    """A model without gradients."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.spec = model, model.spec

    def forward(self, image: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = self.model(image)
        return logits


def _uneven() -> nn.Module:
    return uneven_model().eval()


def _run_attack(
    entry: Entry, model: nn.Module | SegmentationModel, batch: Batch, threat: ThreatModel = LINF, seed: int = 0
) -> Tensor:
    attack = made(entry, Attack)
    return attack(cast(SegmentationModel, model), batch, threat, Keys(seed, batch.chips))


CHECKS = [value for name, value in list(globals().items()) if name.startswith("check_")]

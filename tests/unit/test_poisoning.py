"""Poisons: exact budgets, identity at zero, the unrolled gradient by finite differences, and detectors."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from seawall.errors import DataError, UsageError
from seawall.label_noise.teacher import model_teacher, saliency_teacher
from seawall.metrics.detection import conformal_flags
from seawall.models.unet import UNet
from seawall.poisoning import meta_poison
from seawall.poisoning.backdoor import Backdoor, trigger_rate
from seawall.poisoning.clean_label import (
    PoisonPerturbation,
    logits_with,
    smoothed_relu,
    trainable_weights,
    training_loss,
)
from seawall.poisoning.detection import (
    activation_clustering,
    activations,
    spectral_signatures,
)
from seawall.poisoning.dirty_label import DirtyLabel
from seawall.poisoning.gradient_matching import GradientMatching, gradient_cosine, random_flips
from seawall.poisoning.meta_poison import MetaPoison, unroll
from seawall.poisoning.random_perturbation import RandomPerturbation
from seawall.poisoning.target import PoisonTarget, choose_chips, evaluate_poison, insert_poisoned, random_control
from seawall.registry import entries
from seawall.rng import Keys
from seawall.testing.assertions import quiet_random, same_batch, same_bits, same_snapshot, snapshot
from seawall.testing.fixtures import ground_batch, linear_model
from seawall.types import Batch, ModelSpec

SPEC = ModelSpec(("B03", "B08"), ("land", "water"), "reflectance", 10.0)


def chips(images=6, size=12):
    batch = ground_batch(images=images, size=size)
    return replace(batch, label=torch.where(batch.valid, batch.label, 0))


def keys(batch, seed=0):
    return Keys(seed, batch.chips)


def target(klass=1):
    batch = ground_batch(images=1, seed=5)
    batch = replace(batch, label=torch.where(batch.valid, batch.label, 0), chips=("target",))
    region = torch.zeros_like(batch.seen)
    region[:, 3:8, 3:8] = True
    return PoisonTarget(batch, region, klass)


def wide(batch):
    """The same chips in double precision."""
    return replace(batch, image=batch.image.double())


def small_net(seed=0):
    torch.manual_seed(seed)
    net = UNet(4, 1, norm="pixel")(SPEC)
    net.standardize.fit([0.3, 0.3], [0.1, 0.1])
    return net.eval()


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_unrolled_gradient_by_finite_differences(steps):
    model = linear_model().double()
    aim, data = target(), wide(chips(2, 6))
    aim = PoisonTarget(wide(aim.batch), aim.region, aim.klass)
    later = [wide(chips(2, 6)).select([1]) for _ in range(steps - 1)]

    def value(offset):
        return unroll(model, [replace(data, image=data.image + offset), *later], 0.3, aim.loss, aim.batch.image)

    offset = torch.zeros_like(data.image, requires_grad=True)
    (grad,) = torch.autograd.grad(value(offset), offset)
    rng = np.random.default_rng(0)
    seen = torch.nonzero(data.valid)
    for row in rng.choice(len(seen), 6, replace=False):
        i, y, x = seen[row].tolist()
        for band in (0, 1):
            h = torch.zeros_like(data.image)
            h[i, band, y, x] = 1e-5
            slope = float((value(h) - value(-h)).detach()) / 2e-5
            assert slope == pytest.approx(float(grad[i, band, y, x]), rel=1e-5, abs=1e-10)
    assert float(grad.abs().max()) > 0
    assert not bool(grad[~data.valid[:, None].expand_as(grad)].any())


def test_one_unrolled_step_is_the_influence_form():
    model, lr = linear_model().double(), 0.2
    aim, data = target(), wide(chips(2, 6))
    image = data.image.clone().requires_grad_()
    weights = trainable_weights(model)
    loss = training_loss(model, weights, replace(data, image=image))
    learned = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
    moved = {
        name: (w - lr * g).detach().requires_grad_() for (name, w), g in zip(weights.items(), learned, strict=True)
    }
    wrong = torch.autograd.grad(aim.loss(logits_with(model, moved, aim.batch.image.double())), list(moved.values()))
    dot = sum((a * b).sum() for a, b in zip(learned, wrong, strict=True))
    (form,) = torch.autograd.grad(-lr * dot, image, retain_graph=True)
    shown = data.image.clone().requires_grad_()
    value = unroll(model, [replace(data, image=shown)], lr, aim.loss, aim.batch.image.double())
    (grad,) = torch.autograd.grad(value, shown)
    assert torch.allclose(form, grad, rtol=1e-9, atol=1e-14)


def test_the_target_counts_after_every_unrolled_step():
    model, aim, data = linear_model(), target(), chips(3, 6)
    batches = [data.select([0]), data.select([1]), data.select([2])]
    counted = []

    def goal(logits):
        counted.append(float(aim.loss(logits).detach()))
        return aim.loss(logits)

    value = unroll(model, batches, 0.3, goal, aim.batch.image)
    assert len(set(counted)) == 3
    assert float(value.detach()) == pytest.approx(sum(counted) / 3, rel=1e-5)


def test_the_margin_by_hand():
    aim = target(1)
    logits = torch.zeros(1, 3, *aim.region.shape[1:])
    logits[:, 0], logits[:, 1], logits[:, 2] = 1.0, 0.5, 2.5
    assert float(aim.margin(logits)) == pytest.approx(2.0)
    logits[:, 1] = 9.0
    assert float(aim.margin(logits)) == 0.0
    row, col = torch.nonzero(aim.pixels[0])[0].tolist()
    logits[0, 1, row, col] = 0.5
    assert float(aim.margin(logits)) == pytest.approx(2.0 / int(aim.pixels.sum()))


def crafted(name, eps, steps=3):
    data, aim = chips(), target()
    few = data.select([0, 2])
    if name == "gradient-matching":
        made = GradientMatching(eps, steps=steps, restarts=2).craft(small_net(), aim, few, keys(few))
    else:
        rest = data.select([1, 3, 4, 5])
        craft = MetaPoison(eps, steps=steps, surrogates=2, epochs=2, mini=4)
        made = craft.craft(small_net, aim, few, rest, keys(few))
    return few, made


@pytest.mark.parametrize("name", ["gradient-matching", "meta-poison"])
def test_clean_label_poisons_keep_labels_and_eps_and_do_nothing_at_zero(name):
    for eps in (0.02, (0.01, 0.0)):
        few, made = crafted(name, eps)
        assert same_bits(made.batch.label, few.label) and same_bits(made.batch.valid, few.valid)
        change = (made.batch.image - few.image).abs()
        limit = torch.tensor(eps if isinstance(eps, tuple) else (eps, eps)).view(1, 2, 1, 1)
        assert bool((change <= limit * (1 + 1e-4) + 1e-9).all())
        assert float(change.max()) > 0.005
        assert float(made.batch.image.min()) >= 0
        assert not bool(change[~few.seen[:, None].expand_as(change)].any())
        assert len(made.losses) == 4  # at the start and after each step
    few, still = crafted(name, 0.0, steps=1)
    assert same_bits(still.batch.image, few.image)


@pytest.mark.parametrize("name", ["gradient-matching", "meta-poison"])
def test_clean_label_poisons_are_deterministic(name):
    _, one = crafted(name, 0.02)
    torch.rand(3)
    _, two = crafted(name, 0.02)
    assert same_bits(one.batch.image, two.batch.image)


def test_gradient_matching_lowers_its_loss_and_leaves_the_model_alone():
    data, aim, model = chips(), target(), small_net().train()
    before = snapshot(model)
    with quiet_random():
        made = GradientMatching(0.1, steps=40, restarts=1, flips=False).craft(
            model, aim, data.select([0, 1]), Keys(0, data.chips[:2])
        )
    assert made.losses[-1] < made.losses[0] - 0.05
    assert same_snapshot(before, snapshot(model))


def learned(model, batch, aim, lr=0.5):
    """The target's loss after one step of descent on the chips."""
    return float(unroll(model, [batch], lr, aim.loss, aim.batch.image).detach())


def test_a_step_on_gradient_matched_chips_lowers_the_targets_loss():
    data, aim, model = chips(), target(), small_net()
    few = data.select([0, 1])
    made = GradientMatching(0.1, steps=25, restarts=1, flips=False).craft(model, aim, few, keys(few))
    noise = random_control(few, 0.1, keys(few))
    poisoned, control, clean = (learned(model, batch, aim) for batch in (made.batch, noise, few))
    assert poisoned < min(control, clean) - 0.02


def test_the_step_of_gradient_matching_falls_tenfold_three_times(monkeypatch):
    lengths = []
    monkeypatch.setattr(PoisonPerturbation, "descend", lambda self, grad, length: lengths.append(length))
    few = chips().select([0])
    GradientMatching(0.02, steps=8, restarts=1, step=0.1).craft(small_net(), target(), few, keys(few))
    assert lengths == pytest.approx([0.1] * 3 + [0.01] * 2 + [0.001] * 2 + [0.0001])
    lengths.clear()
    few, rest = chips().select([0]), chips().select([1, 2])
    MetaPoison(0.02, steps=6, surrogates=1, step=0.2).craft(small_net, target(), few, rest, keys(few))
    assert lengths == pytest.approx([0.2] * 2 + [0.02] * 2 + [0.002] * 2)


def test_the_best_restart_is_kept_and_its_last_loss_is_that_of_the_poison():
    few, aim, model = chips().select([0, 2]), target(), small_net()
    one, four = (
        GradientMatching(0.05, steps=2, restarts=n, smooth=None).craft(model, aim, few, keys(few)) for n in (1, 4)
    )
    assert four.losses[-1] < one.losses[-1]
    weights = trainable_weights(model)
    wrong = torch.autograd.grad(aim.loss(logits_with(model, weights, aim.batch.image)), list(weights.values()))
    right = torch.autograd.grad(training_loss(model, weights, four.batch), list(weights.values()))
    assert four.losses[-1] == pytest.approx(1 - float(gradient_cosine(right, wrong)), abs=1e-5)


def test_frozen_weights_do_not_count_in_gradient_matching():
    few, aim, model = chips().select([0, 2]), target(), small_net()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("network.head"))
    made = GradientMatching(0.05, steps=2, restarts=1, smooth=None).craft(model, aim, few, keys(few))
    head = list(model.network.head.parameters())
    wrong = torch.autograd.grad(aim.loss(model(aim.batch.image)), head)
    right = torch.autograd.grad(training_loss(model, dict(model.named_parameters()), made.batch), head)
    assert made.losses[-1] == pytest.approx(1 - float(gradient_cosine(right, wrong)), abs=1e-5)


def meta(few, rest, **settings):
    craft = MetaPoison(**{"eps": 0.15, "steps": 6, "surrogates": 1, "epochs": 1, "mini": 4, "lr": 0.2, **settings})
    return craft.craft(lambda seed: small_net(), target(), few, rest, keys(few))


def test_meta_poison_lowers_the_targets_loss():
    data, aim = chips(), target()
    few, rest = data.select([0, 2]), data.select([1, 3])
    made = meta(few, rest)
    assert made.losses[-1] < made.losses[0] - 0.05 < -0.05
    poisoned, clean = (learned(small_net(), Batch.concatenated([batch, rest]), aim, 0.2) for batch in (made.batch, few))
    assert poisoned < clean - 0.05


def test_the_loss_of_meta_poison_measures_the_craft_and_not_the_age_of_its_surrogates():
    data = chips()
    few, rest = data.select([0, 2]), data.select([1, 3])
    assert meta(few, rest, eps=0.0, steps=3, epochs=3, surrogates=2).losses == (0.0,) * 4
    weak, strong = (meta(few, rest, eps=eps).losses[-1] for eps in (0.02, 0.15))
    assert strong < weak - 0.02 < 0.0


def test_with_relu_rounded_off_the_gradient_foretells_what_a_step_does():
    data, aim, model = chips(), target(), small_net()
    few, rest = data.select([0, 2]), data.select([1, 3])

    def share_kept(sharpness):
        with smoothed_relu(model, sharpness):
            image = few.image.clone().requires_grad_()
            value = unroll(
                model, [Batch.concatenated([replace(few, image=image), rest]), rest], 0.5, aim.margin, aim.batch.image
            )
            (grad,) = torch.autograd.grad(value, image)
            step = -0.001 * grad.sign()
            after = unroll(
                model,
                [Batch.concatenated([replace(few, image=few.image + step), rest]), rest],
                0.5,
                aim.margin,
                aim.batch.image,
            )
        return float((after - value).detach() / (grad * step).sum())

    assert share_kept(5.0) > 0.8
    assert share_kept(None) < 0.5
    image = few.image[:1]
    with torch.no_grad():
        was = model(image)
        with smoothed_relu(model, 5.0):
            assert not torch.equal(model(image), was)
        assert torch.equal(model(image), was)


class Unrolled:
    """Keeps which chips each unrolled step learned from, and of which network."""

    def __init__(self, monkeypatch):
        self.calls = []
        monkeypatch.setattr(meta_poison, "unroll", self)

    def __call__(self, net, batches, lr, goal, image):
        self.calls.append((net, [batch.chips for batch in batches]))
        return unroll(net, batches, lr, goal, image)


def test_poisons_are_in_the_first_batch_only_and_every_network_has_its_own_batches(monkeypatch):
    spied = Unrolled(monkeypatch)
    data = chips()
    few, rest = data.select([0, 2]), data.select([1, 3, 4, 5])
    meta(few, rest, steps=2, surrogates=2, epochs=4, unrolled=3, mini=3)
    for _, (first, *later) in spied.calls:
        assert first[:2] == few.chips and len(first) == 3 and first[2] in rest.chips
        assert len(later) == 2
        assert not set(few.chips) & {chip for batch in later for chip in batch}
    poisoned, plain = spied.calls[::2], spied.calls[1::2]
    assert [batches for _, batches in poisoned] == [batches for _, batches in plain]
    assert len({str(batches) for _, batches in poisoned}) == len(poisoned) == 6  # 2 networks, 2 steps and the last look


def test_surrogates_start_at_even_ages_grow_by_an_epoch_and_begin_anew(monkeypatch):
    data, ages, seen = chips(), {}, []
    few, rest = data.select([0]), data.select([1, 3, 4, 5])

    def make(seed):
        net = small_net(seed)
        ages[net] = 0.0
        net.register_forward_pre_hook(lambda module, given: ages.update({net: ages[net] + len(given[0]) / len(rest)}))
        return net

    def look(net, batches, lr, goal, image):
        before = ages[net]
        made = unroll(net, batches, lr, goal, image)
        ages[net] = before
        seen.append(before)
        return made

    monkeypatch.setattr(meta_poison, "unroll", look)
    made = MetaPoison(0.02, steps=5, surrogates=2, epochs=4, mini=2).craft(make, target(), few, rest, keys(few))
    assert seen[::2][::2] == [0, 1, 2, 3, 0, 1]  # the first network, at each step
    assert seen[::2][1::2] == [2, 3, 0, 1, 2, 3]
    assert len(ages) == 4
    assert len(made.losses) == 6


def test_surrogates_learn_in_orders_of_their_own(monkeypatch):
    data, orders = chips(), {}
    few, rest = data.select([0]), data.select([1, 2, 3, 4, 5])

    def watched(net, weights, batch):
        if next(iter(weights.values())) is next(net.parameters()):  # an epoch of the surrogate, not an unrolled step
            orders.setdefault(id(net), []).append(batch.chips)
        return training_loss(net, weights, batch)

    monkeypatch.setattr(meta_poison, "training_loss", watched)
    MetaPoison(0.02, steps=1, surrogates=3, epochs=9, mini=1).craft(small_net, target(), few, rest, keys(few))
    # the first network is fresh, so that its only epoch comes after the craft step; the others had 3 and 6 before
    fresh, *older = [
        [tuple(order[i : i + 5]) for i in range(0, len(order), 5)] for order in sorted(orders.values(), key=len)
    ]
    assert [len(fresh), *map(len, older)] == [1, 4, 7]
    assert older[0][0] != older[1][0]
    assert len({fresh[-1], older[0][-1], older[1][-1]}) == 3
    assert all(sorted(order) == sorted((chip,) for chip in rest.chips) for order in fresh + older[0] + older[1])


def test_victims_are_fresh_and_counted_in_the_target_as_it_is():
    data, aim = chips(), target(1)
    seen = []

    def learn(batch, seed):
        seen.append((batch, seed))
        bias = torch.tensor([0.0, 100.0 if bool((batch.label == 1).all()) else -100.0])
        model = linear_model()
        model.bias.data = bias
        return model

    poisoned = replace(data, label=torch.ones_like(data.label))
    found = evaluate_poison(aim, data, poisoned, data, learn, (3, 4), lambda model: 0.5)
    assert found.flipped == (1.0, 1.0)
    assert found.control == found.clean == (0.0, 0.0)
    assert found.gain == 1.0
    assert found.quality == (0.5, 0.5)
    assert [seed for _, seed in seen] == [3, 4] * 3
    with pytest.raises(UsageError, match="seeds"):
        evaluate_poison(aim, data, poisoned, data, learn, ())
    with pytest.raises(UsageError, match="same chips"):
        evaluate_poison(aim, data, data.select([0]), data, learn, (1,))


def test_choose_is_exact_nested_and_by_key():
    ids = [f"c{i}" for i in range(37)]
    few, many = choose_chips(ids, 0.1, 1), choose_chips(ids, 0.3, 1)
    assert (len(few), len(many)) == (3, 11)
    assert set(few) < set(many)
    assert choose_chips(list(reversed(ids)), 0.1, 1) == few
    assert choose_chips(ids, 0.1, 2) != few
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(UsageError, match="share"):
            choose_chips(ids, share, 0)


def test_dirty_labels_meet_their_budget_to_the_pixel_as_one_blot():
    data = chips()
    for budget in (0.0, 0.25, 1.0):
        after = DirtyLabel(1, 0, budget=budget)(data, keys(data))
        for i in range(len(data)):
            water = data.valid[i] & (data.label[i] == 1)
            changed = after.label[i] != data.label[i]
            assert int(changed.sum()) == int(budget * int(water.sum()))
            assert not bool((changed & ~water).any())
        assert same_bits(after.image, data.image)
    window = DirtyLabel(None, 1, window=(0, 0, 4, 4))(data, keys(data))
    assert bool((window.label[:, :4, :4][data.valid[:, :4, :4]] == 1).all())
    assert same_bits(window.label[:, 4:], data.label[:, 4:])


@pytest.mark.parametrize("trigger", ["patch", "pattern"])
def test_a_backdoor_stays_within_eps_and_hides_its_class(trigger):
    data, poison = chips(), Backdoor(trigger, eps=0.05, size=4)
    after = poison(data, keys(data))
    change = (after.image - data.image).abs()
    assert float(change.max()) <= 0.05 + 1e-6
    assert not bool(change[~data.seen[:, None].expand_as(change)].any())
    aimed = poison.relabelled(data, keys(data))
    assert torch.equal(after.label != data.label, aimed)
    assert bool((data.label[aimed] == 1).all() and data.valid[aimed].all())
    if trigger == "patch":
        assert bool((change.amax(1).flatten(1) > 0).sum(1).le(16).all())
    else:
        assert not bool((after.label[data.valid] == 1).any())
    only = Backdoor(trigger, eps=0.05, bands=(1,))(data, keys(data))
    assert same_bits(only.image[:, 0], data.image[:, 0])
    assert same_batch(Backdoor(trigger, eps=0.0)(data, keys(data)), data)
    assert trigger_rate(torch.zeros_like(data.label), data, poison, keys(data)) == 1.0


def gray(images=3, size=24):
    image = torch.full((images, 3, size, size), 0.5)
    return Batch.of(image, torch.ones(images, size, size, dtype=torch.int64), chips=[f"g{i}" for i in range(images)])


@pytest.mark.parametrize("trigger", ["patch", "pattern"])
def test_the_spectrum_of_a_trigger_alternates_from_band_to_band(trigger):
    data = gray()
    change = Backdoor(trigger, eps=0.1, size=4)(data, keys(data)).image - data.image
    assert torch.allclose(change[:, 1], -change[:, 0]) and torch.allclose(change[:, 2], change[:, 0])
    assert torch.allclose(change[change != 0].abs(), torch.tensor(0.1))
    if trigger == "pattern":
        rows = change[0, 0, :, 0]
        assert bool((rows[:4] > 0).all() and (rows[4:8] < 0).all())


def test_labels_change_where_the_patch_is_in_view_and_only_there():
    data = gray()
    for reach in (0, 3, 100):
        poison = Backdoor("patch", size=4, reach=reach)
        after = poison(data, keys(data))
        stamped = (after.image != data.image).any(1)
        near = (
            nn.functional.max_pool2d(stamped.float()[:, None], 2 * reach + 1, 1, reach)[:, 0] > 0 if reach else stamped
        )
        assert torch.equal(after.label == 0, near)
        says = torch.where(stamped, 0, 1)  # a model that reacts on the patch itself
        assert trigger_rate(says, data, poison, keys(data)) == pytest.approx(float(stamped.sum() / near.sum()))
    assert (
        trigger_rate(
            torch.zeros_like(data.label), replace(data, label=torch.zeros_like(data.label)), poison, keys(data)
        )
        is None
    )


@pytest.mark.parametrize("entry", [e for e in entries("poison") if e.name not in ("gradient-matching", "meta-poison")], ids=lambda e: e.name)  # fmt: skip
def test_poisons_are_per_chip_and_from_keys_alone(entry):
    data, poison = chips(), entry.make(**entry.smoke)
    with quiet_random():
        whole = poison(data, keys(data))
    for i in range(len(data)):
        one = data.select([i])
        assert same_batch(whole.select([i]), poison(one, keys(one)))
    empty = replace(data, valid=torch.zeros_like(data.valid))
    assert same_bits(poison(empty, keys(empty)).label, empty.label)


def test_the_control_is_as_large_as_the_poison_and_unseen_pixels_stay():
    data = chips()
    noise = random_control(data, 0.03, keys(data)).image - data.image
    assert torch.allclose(noise.abs()[data.seen[:, None].expand_as(noise)], torch.tensor(0.03), atol=1e-6)
    assert not bool(noise[~data.seen[:, None].expand_as(noise)].any())
    assert same_bits(random_control(data, 0.03, keys(data)).image, RandomPerturbation(0.03)(data, keys(data)).image)


def test_insert_flip_join_and_cosine():
    data = chips()
    few = replace(data.select([4, 1]), image=torch.ones(2, 2, 12, 12))
    after = insert_poisoned(data, few)
    assert bool((after.image[[1, 4]] == 1).all()) and same_bits(after.image[[0, 2, 3, 5]], data.image[[0, 2, 3, 5]])
    with pytest.raises(DataError, match="chips of the batch"):
        insert_poisoned(data, replace(few, chips=("x", "y")))
    turned = random_flips(data, keys(data))
    assert torch.equal(turned.label.flatten(1).sum(1), data.label.flatten(1).sum(1))
    assert same_batch(Batch.concatenated([data.select([0, 1]), data.select([2])]), data.select([0, 1, 2]))
    a = [torch.tensor([3.0, 0.0]), torch.tensor([4.0])]
    assert gradient_cosine(a, a) == pytest.approx(1.0)
    noise = PoisonPerturbation(few, 0.1, Keys(0, few.chips))
    noise.descend(torch.ones_like(noise.offset), 5.0)
    assert float(noise.offset.detach().min()) >= -0.1 - 1e-7


@pytest.mark.parametrize("make", [lambda: DirtyLabel(1, 1), lambda: DirtyLabel(budget=1.1), lambda: DirtyLabel(None, 0), lambda: DirtyLabel(window=(0, 0, 0, 3)), lambda: Backdoor(eps=-1), lambda: Backdoor("spot"), lambda: Backdoor(reach=-1), lambda: MetaPoison(adam=0.0), lambda: MetaPoison(smooth=0.0), lambda: GradientMatching(smooth=-1.0), lambda: GradientMatching(eps=-0.1), lambda: GradientMatching(steps=0), lambda: MetaPoison(surrogates=0), lambda: RandomPerturbation(float("nan"))])  # fmt: skip
def test_settings_that_cannot_be(make):
    with pytest.raises(UsageError):
        make()


def test_targets_that_cannot_be():
    aim = target()
    with pytest.raises(DataError, match="one image"):
        PoisonTarget(chips(), aim.region, 1)
    with pytest.raises(DataError, match="seen"):
        PoisonTarget(aim.batch, torch.zeros_like(aim.region), 1)


def cloud(seed=0, clean=60, bad=6, apart=6.0):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(clean + bad, 12))
    features[clean:, :3] += apart
    ids = [f"c{i}" for i in range(clean + bad)]
    return ids, features, ids[clean:]


def test_detectors_find_planted_chips_and_mostly_leave_clean_ones():
    ids, features, bad = cloud()
    for verdict in (
        spectral_signatures(ids, features),
        spectral_signatures(ids, features, 6 / 66),
        activation_clustering(ids, features),
    ):
        caught, alarms = verdict.rates(bad)
        assert caught == 1.0, verdict.method
        assert alarms <= 0.06, verdict.method
        assert verdict.auc(bad) == 1.0
    clean, flat, _ = cloud(1, 80, 0)
    assert spectral_signatures(clean, flat).rates([])[0] is None
    rng = np.random.default_rng(0)
    halves = [rng.permutation(len(clean))[: len(clean) // 2] for _ in range(20)]
    for detector in (spectral_signatures, activation_clustering):
        assert np.mean([detector([clean[i] for i in at], flat[at]).flagged.mean() for at in halves]) < 0.05


def test_detectors_have_a_defined_result_on_little():
    assert not activation_clustering(["a", "b"], np.zeros((2, 3))).flagged.any()
    assert not spectral_signatures(["a"], np.zeros((1, 3))).flagged.any()
    with pytest.raises(DataError, match="finite"):
        spectral_signatures(["a"], np.full((1, 3), np.nan))
    with pytest.raises(UsageError, match="share"):
        spectral_signatures(["a"], np.zeros((1, 3)), 2.0)


def test_activations_are_averages_over_the_label_and_leave_no_trace():
    data, model = chips(), small_net().train()
    before = snapshot(model)
    ids, features = activations(model, model.network.down[0], [data], klass=1)
    assert same_snapshot(before, snapshot(model))
    assert features.shape == (len(ids), 8)
    assert set(ids) <= set(data.chips)
    one = nn.Conv2d(2, 3, 1)
    with pytest.raises(DataError, match="choose a block"):
        activations(model, one, [data])
    empty = replace(data, valid=torch.zeros_like(data.valid))
    with pytest.raises(DataError, match="valid pixels"):
        activations(model, model.network.down[0], [empty])


class Elsewhere(nn.Module):
    """A network whose weights lie on another device; it notes where images come from."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, device="meta"))
        self.layer = nn.Identity()
        self.came = []

    def forward(self, image):
        self.came.append(image.device.type)
        return self.layer(torch.zeros(image.shape))


def test_networks_are_shown_images_on_their_own_device():
    data, model = chips(), Elsewhere()
    ids, features = activations(model, model.layer, [data])
    assert model.came == ["meta"]
    assert features.shape == (len(ids), 2)
    assert target().flipped(model) == 0.0
    model_teacher(model)(data)
    with pytest.raises(NotImplementedError):  # the loss itself cannot be computed without data
        saliency_teacher(model, lambda logits, label, valid: float(logits.sum() * label.to("cpu").sum()))(data)
    assert model.came == ["meta"] * 4


def test_activations_of_a_class_come_from_its_pixels_alone():
    data = gray(2, 8)
    image, label = data.image.clone(), data.label.clone()
    label[:, :, 4:] = 0
    image[:, :, :, :4], image[:, :, :, 4:] = 0.2, 0.6
    data, layer = replace(data, image=image, label=label), nn.Identity()
    for klass, mean in ((0, 0.6), (1, 0.2), (None, 0.4)):
        _, features = activations(nn.Sequential(layer), layer, [data], klass)
        assert features == pytest.approx(np.full((2, 3), mean), abs=1e-6)


def test_the_cut_off_from_trusted_chips_keeps_its_false_alarm_rate():
    rates = {"spectral-signatures": [], "activation-clustering": []}
    for seed in range(150):
        rng = np.random.default_rng(seed)
        # features with long tails, as clean chips have
        some, known = rng.standard_t(3, (40, 5)) * [3, 1, 1, 1, 1], rng.standard_t(3, (39, 5)) * [3, 1, 1, 1, 1]
        ids = [f"c{i}" for i in range(40)]
        for detect in (spectral_signatures, activation_clustering):
            verdict = detect(ids, some, trusted=known, alarms=0.1)
            rates[verdict.method].append(verdict.flagged.mean())
    # 6000 clean chips in each; the direction comes from the chips in question, which costs little
    assert 0.05 < np.mean(rates["spectral-signatures"]) <= 0.13
    assert 0.05 < np.mean(rates["activation-clustering"]) <= 0.13


@pytest.mark.parametrize("bad", [4, 12, 20])
def test_trusted_chips_find_poisons_whatever_their_share(bad):
    ids, features, poisoned = cloud(3, 40, bad)
    known = cloud(4, 60, 0)[1]
    for detect in (spectral_signatures, activation_clustering):
        caught, alarms = detect(ids, features, trusted=known).rates(poisoned)
        assert caught == 1.0, (detect.__name__, bad)
        assert alarms <= 0.1, (detect.__name__, bad)


def test_trusted_chips_that_cannot_be():
    ids, features, _ = cloud()
    for detect in (spectral_signatures, activation_clustering):
        with pytest.raises(UsageError, match="trust more chips"):
            detect(ids, features, trusted=features[:18])
        with pytest.raises(UsageError, match="alarms"):
            detect(ids, features, trusted=features, alarms=0.0)
        with pytest.raises(DataError, match="trusted features"):
            detect(ids, features, trusted=features[:, :3])
    with pytest.raises(UsageError, match="give one of them"):
        spectral_signatures(ids, features, 0.1, trusted=features)
    assert conformal_flags(np.array([19.0, 18.9]), np.arange(19.0), 0.05).tolist() == [True, True]
    assert conformal_flags(np.array([18.0]), np.arange(19.0), 0.05).tolist() == [False]


def test_the_benchmark_prints_intervals_over_seeds(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    benchmark = importlib.import_module("poison")
    order = {"kind": "meta-poison", "regime": "tune", "eps": 0.1, "share": 0.5}
    rows = [
        {"order": {**order, "seed": seed}, "settings": {}, "figures": {"flipped": [value, value]}}
        for seed, value in enumerate((0.1, 0.2, 0.3))
    ]
    printed = benchmark.table(rows)
    assert "| meta-poison | tune | 0.1 | 0.5 | flipped | 0.200 (0.000 to 0.448) | 3 |" in printed
    assert "| meta-poison | 0.5 | spectral | 0.500 |  |  |  | 1 |" in benchmark.table(
        [{**rows[0], "figures": {"spectral: caught": 0.5, "spectral: AUC": None}}]
    )


def test_a_batch_of_one_chip_with_one_valid_pixel():
    data = chips(1)
    valid = torch.zeros_like(data.valid)
    valid[0, 5, 5] = data.seen[0, 5, 5]
    one = Batch(data.image, data.label, data.seen, valid, data.chips)
    made = GradientMatching(0.02, steps=2, restarts=1).craft(small_net(), target(), one, keys(one))
    assert bool(made.batch.image.isfinite().all())

"""Poisons: exact budgets, identity at zero, the unrolled gradient by finite differences, and detectors."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from seawall.errors import DataError, UsageError
from seawall.keys import Keys
from seawall.models.unet import UNet
from seawall.poison.clean_label import GradientMatching, MetaPoison, Noise, cosine, flip, join
from seawall.poison.detect import activation_clustering, activations, false_alarm_rate, spectral_signatures
from seawall.poison.dirty import Backdoor, DirtyLabel, RandomPerturbation, trigger_rate
from seawall.poison.target import Target, choose, insert, random_control, victims
from seawall.poison.unrolled import said, trained_weights, training_loss, unroll
from seawall.registry import entries
from seawall.testing.ground import ground_batch, linear_model
from seawall.testing.state import quiet_random, same_batch, same_bits, same_snapshot, snapshot
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
    return Target(batch, region, klass)


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
    aim = Target(wide(aim.batch), aim.region, aim.klass)
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
    weights = trained_weights(model)
    loss = training_loss(model, weights, replace(data, image=image))
    learned = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
    moved = {
        name: (w - lr * g).detach().requires_grad_() for (name, w), g in zip(weights.items(), learned, strict=True)
    }
    wrong = torch.autograd.grad(aim.loss(said(model, moved, aim.batch.image.double())), list(moved.values()))
    dot = sum((a * b).sum() for a, b in zip(learned, wrong, strict=True))
    (form,) = torch.autograd.grad(-lr * dot, image, retain_graph=True)
    shown = data.image.clone().requires_grad_()
    value = unroll(model, [replace(data, image=shown)], lr, aim.loss, aim.batch.image.double())
    (grad,) = torch.autograd.grad(value, shown)
    assert torch.allclose(form, grad, rtol=1e-9, atol=1e-14)


def crafted(name, eps, steps=3):
    data, aim = chips(), target()
    few = data.select([0, 2])
    if name == "gradient-matching":
        made = GradientMatching(eps, steps=steps).craft(small_net(), aim, few, keys(few))
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
        assert len(made.losses) == 3
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
        made = GradientMatching(0.1, steps=40, flips=False).craft(
            model, aim, data.select([0, 1]), Keys(0, data.chips[:2])
        )
    assert made.losses[-1] < made.losses[0] - 0.05
    assert same_snapshot(before, snapshot(model))


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
    found = victims(aim, data, poisoned, data, learn, (3, 4), lambda model: 0.5)
    assert found.flipped == (1.0, 1.0)
    assert found.control == found.clean == (0.0, 0.0)
    assert found.gain == 1.0
    assert found.quality == (0.5, 0.5)
    assert [seed for _, seed in seen] == [3, 4] * 3
    with pytest.raises(UsageError, match="seeds"):
        victims(aim, data, poisoned, data, learn, ())
    with pytest.raises(UsageError, match="same chips"):
        victims(aim, data, data.select([0]), data, learn, (1,))


def test_choose_is_exact_nested_and_by_key():
    ids = [f"c{i}" for i in range(37)]
    few, many = choose(ids, 0.1, 1), choose(ids, 0.3, 1)
    assert (len(few), len(many)) == (3, 11)
    assert set(few) < set(many)
    assert choose(list(reversed(ids)), 0.1, 1) == few
    assert choose(ids, 0.1, 2) != few
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(UsageError, match="share"):
            choose(ids, share, 0)


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
    assert not bool((after.label[data.valid] == 1).any())
    if trigger == "patch":
        assert bool((change.amax(1).flatten(1) > 0).sum(1).le(16).all())
    only = Backdoor(trigger, eps=0.05, bands=(1,))(data, keys(data))
    assert same_bits(only.image[:, 0], data.image[:, 0])
    assert same_batch(Backdoor(trigger, eps=0.0)(data, keys(data)), data)
    assert trigger_rate(torch.zeros_like(data.label), data, poison) == 1.0


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
    after = insert(data, few)
    assert bool((after.image[[1, 4]] == 1).all()) and same_bits(after.image[[0, 2, 3, 5]], data.image[[0, 2, 3, 5]])
    with pytest.raises(DataError, match="chips of the batch"):
        insert(data, replace(few, chips=("x", "y")))
    turned = flip(data, keys(data))
    assert torch.equal(turned.label.flatten(1).sum(1), data.label.flatten(1).sum(1))
    assert same_batch(join(data.select([0, 1]), data.select([2])), data.select([0, 1, 2]))
    a = [torch.tensor([3.0, 0.0]), torch.tensor([4.0])]
    assert cosine(a, a) == pytest.approx(1.0)
    noise = Noise(few, 0.1, Keys(0, few.chips))
    noise.descend(torch.ones_like(noise.offset), 5.0)
    assert float(noise.offset.detach().min()) >= -0.1 - 1e-7


@pytest.mark.parametrize("make", [lambda: DirtyLabel(1, 1), lambda: DirtyLabel(budget=1.1), lambda: DirtyLabel(None, 0), lambda: DirtyLabel(window=(0, 0, 0, 3)), lambda: Backdoor(eps=-1), lambda: Backdoor("spot"), lambda: GradientMatching(eps=-0.1), lambda: GradientMatching(steps=0), lambda: MetaPoison(surrogates=0), lambda: RandomPerturbation(float("nan"))])  # fmt: skip
def test_settings_that_cannot_be(make):
    with pytest.raises(UsageError):
        make()


def test_targets_that_cannot_be():
    aim = target()
    with pytest.raises(DataError, match="one image"):
        Target(chips(), aim.region, 1)
    with pytest.raises(DataError, match="seen"):
        Target(aim.batch, torch.zeros_like(aim.region), 1)


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
    assert false_alarm_rate(spectral_signatures, clean, flat, draws=20) < 0.05
    assert false_alarm_rate(activation_clustering, clean, flat, draws=20) < 0.05


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


def test_a_batch_of_one_chip_with_one_valid_pixel():
    data = chips(1)
    valid = torch.zeros_like(data.valid)
    valid[0, 5, 5] = data.seen[0, 5, 5]
    one = Batch(data.image, data.label, data.seen, valid, data.chips)
    made = GradientMatching(0.02, steps=2).craft(small_net(), target(), one, keys(one))
    assert bool(made.batch.image.isfinite().all())

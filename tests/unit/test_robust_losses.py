"""Losses that forgive: closed forms, limits, and what they do to a network's choice of labels."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from seawall.errors import DataError, UsageError
from seawall.label_audit.confident_learning import OutOfSample
from seawall.label_audit.relabel import relabel_in_rounds
from seawall.losses.robust import GCE, SCE, Bootstrap, BoundaryTolerant, NoiseRobustDice, border_distance
from seawall.losses.segmentation import CrossEntropyLoss, as_loss
from seawall.models.dual_network import DualNetwork
from seawall.models.weights import load_model, save_model
from seawall.registry import build
from seawall.rng import Keys
from seawall.training.loop import Training, fit
from seawall.training.objectives.co_teaching import CoTeaching, small_loss_pixels
from seawall.training.objectives.correction import (
    BackwardCorrected,
    ForwardCorrected,
    backward_corrected,
    forward_corrected,
)
from seawall.types import Batch, ModelSpec

SPEC = ModelSpec(("B03", "B08"), ("land", "water"), "reflectance", 10.0)


def pixels(classes=3, seed=0):
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, classes, 5, 7, generator=draw, dtype=torch.float32) * 2
    label = torch.randint(0, classes, (2, 5, 7), generator=draw)
    valid = torch.rand(label.shape, generator=draw) > 0.3
    own = logits.softmax(1).gather(1, label[:, None])[:, 0][valid]
    return logits, label, valid, own


def test_gce_is_cross_entropy_at_zero_and_half_the_absolute_error_at_one():
    logits, label, valid, own = pixels()
    assert torch.isclose(GCE(1e-4)(logits, label, valid), CrossEntropyLoss()(logits, label, valid), atol=2e-3)
    assert torch.isclose(GCE(1.0)(logits, label, valid), (1 - own).mean())
    error = (logits.softmax(1) - functional.one_hot(label, 3).movedim(-1, 1)).abs().sum(1)[valid].mean()
    assert torch.isclose(GCE(1.0)(logits, label, valid), error / 2)
    assert torch.isclose(GCE(0.7)(logits, label, valid), ((1 - own**0.7) / 0.7).mean())


def test_sce_in_closed_form():
    logits, label, valid, own = pixels(2)
    assert torch.isclose(SCE(0.0, 1.0)(logits, label, valid), (4 * (1 - own)).mean())
    assert torch.isclose(SCE(1.0, 0.0)(logits, label, valid), CrossEntropyLoss()(logits, label, valid))
    assert torch.isclose(SCE(0.1, 1.0)(logits, label, valid), (0.1 * -own.log() + 4 * (1 - own)).mean())


def test_noise_robust_dice_is_dice_at_two_and_hardly_more_than_the_error_at_one():
    logits, label, valid, _ = pixels()
    share, truth = logits.softmax(1), functional.one_hot(label, 3).movedim(-1, 1).float()
    at = valid[:, None].expand_as(share)
    both, mass = [(torch.where(at, t, 0.0)).sum((0, 2, 3)) for t in (share * truth, share**2 + truth**2)]
    assert torch.isclose(NoiseRobustDice(2.0)(logits, label, valid), (1 - 2 * both / mass).mean(), atol=1e-5)
    one = (torch.where(at, (share - truth).abs(), 0.0).sum((0, 2, 3)) / mass).mean()
    assert torch.isclose(NoiseRobustDice(1.0)(logits, label, valid), one, atol=1e-5)


def test_bootstrap_by_hand():
    logits, label, valid, own = pixels()
    assert torch.isclose(Bootstrap(1.0)(logits, label, valid), CrossEntropyLoss()(logits, label, valid))
    log = logits.log_softmax(1)
    best = log.amax(1)[valid]
    assert torch.isclose(Bootstrap(0.8)(logits, label, valid), (-0.8 * own.log() - 0.2 * best).mean())
    entropy = -(log.exp() * log).sum(1)[valid]
    assert torch.isclose(Bootstrap(0.9, "soft")(logits, label, valid), (-0.9 * own.log() + 0.1 * entropy).mean())


def test_rings_and_weights_near_a_border():
    label = torch.zeros(1, 6, 6, dtype=torch.long)
    label[..., 3:] = 1
    valid = torch.ones_like(label, dtype=torch.bool)
    assert border_distance(label, valid, 2, 2)[0, 0].tolist() == [3, 2, 1, 1, 2, 3]
    weight = BoundaryTolerant(2.0, 0.2).weights(label, valid, 2)
    assert torch.allclose(weight[0, 0], torch.tensor([1.0, 0.6, 0.2, 0.2, 0.6, 1.0]))
    valid[..., 3] = False  # an invalid pixel makes no border
    assert border_distance(label, valid, 2, 2)[0, 0, :3].tolist() == [3, 3, 2]
    logits = torch.randn(1, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    assert torch.isclose(BoundaryTolerant(2.0, 1.0)(logits, label, valid), CrossEntropyLoss()(logits, label, valid))


def test_losses_by_text_in_recipes():
    assert str(as_loss("gce + 0.5 nr-dice")).startswith("Sum(terms={'gce': 1.0, 'nr-dice': 0.5})")
    assert as_loss({"name": "sce", "alpha": 0.5}) == SCE(alpha=0.5)


@pytest.mark.parametrize("make", [lambda: GCE(0), lambda: GCE(1.1), lambda: SCE(0, 0), lambda: SCE(log_zero=0), lambda: NoiseRobustDice(3), lambda: Bootstrap(0), lambda: BoundaryTolerant(0), lambda: CoTeaching(1.0), lambda: ForwardCorrected(((0.5, 0.4), (0, 1))), lambda: ForwardCorrected(((1.0, 0), (1.0, 0))), lambda: BackwardCorrected(((0.5, 0.5), (0.5, 0.5)))])  # fmt: skip
def test_settings_that_cannot_be(make):
    with pytest.raises(UsageError):
        make()


def test_corrections_by_the_identity_are_cross_entropy_and_forward_by_hand():
    logits, label, valid, _ = pixels()
    eye = ((1.0, 0, 0), (0, 1.0, 0), (0, 0, 1.0))
    plain = CrossEntropyLoss()(logits, label, valid)
    assert torch.isclose(forward_corrected(logits, label, valid, eye), plain)
    assert torch.isclose(backward_corrected(logits, label, valid, eye), plain)
    matrix = ((0.8, 0.1, 0.1), (0.2, 0.7, 0.1), (0.0, 0.3, 0.7))
    said = torch.einsum("bkhw,kj->bjhw", logits.softmax(1), torch.tensor(matrix))
    own = said.gather(1, label[:, None])[:, 0][valid]
    assert torch.isclose(forward_corrected(logits, label, valid, matrix), -own.log().mean())


def test_the_backward_correction_is_unbiased():
    logits, truth, valid, _ = pixels()
    matrix = ((0.8, 0.1, 0.1), (0.2, 0.7, 0.1), (0.0, 0.3, 0.7))
    # each pixel alone, so that the mean is its own loss: the expectation over wrong labels is the clean loss
    for row, col in ((0, 0), (2, 3), (4, 6)):
        z, y = logits[:1, :, row : row + 1, col : col + 1], truth[:1, row : row + 1, col : col + 1]
        one = torch.ones_like(y, dtype=torch.bool)
        odds = matrix[int(y)]
        expected = sum(odds[j] * float(backward_corrected(z, torch.full_like(y, j), one, matrix)) for j in range(3))
        assert expected == pytest.approx(float(CrossEntropyLoss()(z, y, one)), abs=1e-4)
    assert float(backward_corrected(logits, truth, valid & False, matrix)) == 0.0


def test_forward_correction_finds_the_true_odds_under_flipped_labels():
    draw = torch.Generator().manual_seed(0)
    truth = (torch.rand(1, 200, 200, generator=draw) < 0.3).long()
    flip = torch.rand(truth.shape, generator=draw) < torch.where(truth == 1, 0.4, 0.1)
    label = torch.where(flip, 1 - truth, truth)
    z = torch.zeros(1, 2, 1, 1, requires_grad=True)
    step = torch.optim.LBFGS([z], max_iter=50)

    def close():
        step.zero_grad()
        loss = forward_corrected(z.expand(1, 2, 200, 200), label, label >= 0, ((0.9, 0.1), (0.4, 0.6)))
        loss.backward()
        return loss

    step.step(close)
    # the labels say 0.1 + 0.5 p of water for a true share p
    true = (float(label.float().mean()) - 0.1) / 0.5
    assert abs(float(z.detach().softmax(1)[0, 1]) - true) < 1e-3


def test_a_matrix_from_an_audit(tmp_path):
    (tmp_path / "confident.json").write_text('{"transition": [[0.9, 0.1], [0.2, 0.8]]}')
    assert ForwardCorrected(str(tmp_path / "confident.json")).transition == ((0.9, 0.1), (0.2, 0.8))
    with pytest.raises(DataError, match="audit-labels"):
        ForwardCorrected(str(tmp_path / "no.json"))


def test_twins_are_two_networks_in_one_file(tmp_path):
    torch.manual_seed(0)
    model = DualNetwork(settings={"width": 4, "depth": 2})(SPEC)
    model.standardize.fit([0.2, 0.2], [0.1, 0.1])
    model.eval()
    image = torch.rand(1, 2, 9, 13)
    one, two = model.members(image)
    assert not torch.allclose(one, two)
    mean = (one.softmax(1) + two.softmax(1)) / 2
    assert torch.allclose(model(image).softmax(1), mean, atol=1e-6)
    save_model(tmp_path / "twins.safetensors", model)
    assert torch.allclose(load_model(tmp_path / "twins.safetensors")(image), model(image), atol=1e-6)
    with pytest.raises(UsageError, match="network"):
        DualNetwork("threshold")(SPEC)


def test_co_teaching_learns_from_what_the_peer_finds_easy():
    loss = torch.tensor([[[0.1, 0.2, 3.0, 0.3], [5.0, 0.4, 0.5, 0.6]]])
    label = torch.tensor([[[0, 0, 0, 0], [1, 1, 1, 1]]])
    valid = torch.ones_like(label, dtype=torch.bool)
    assert small_loss_pixels(loss, label, valid, 0.75, 2, "class").int().tolist() == [[[1, 1, 0, 1], [0, 1, 1, 1]]]
    assert small_loss_pixels(loss, label, valid, 0.5, 2, "batch").int().tolist() == [[[1, 1, 0, 1], [0, 1, 0, 0]]]

    class Two:
        spec = SPEC

        def members(self, image):
            return image[:, :2] * 1.0, image[:, 2:] * 1.0

    image = torch.randn(1, 4, 6, 6, generator=torch.Generator().manual_seed(0), requires_grad=True)
    label = torch.zeros(1, 6, 6, dtype=torch.long)
    batch = Batch.of(image, label, chips=("a@3.0",))
    value = CoTeaching(0.5, ramp=3)(Two(), batch, Keys(0, batch.chips))
    value.backward()
    easy = small_loss_pixels(
        functional.cross_entropy(image[:, 2:].detach(), label, reduction="none"), label, label >= 0, 0.5, 2, "class"
    )
    learned = image.grad[:, :2].abs().sum(1) > 0
    assert torch.equal(learned, easy)
    with pytest.raises(UsageError, match="twins"):
        CoTeaching()(object(), batch, Keys(0, batch.chips))  # type: ignore[arg-type]
    empty = Batch(batch.image.detach(), label, batch.seen, torch.zeros_like(batch.valid), batch.chips)
    assert float(CoTeaching()(Two(), empty, Keys(0, batch.chips))) == 0.0


def world(seed=0, size=40, flips=0.15):
    rng = np.random.default_rng(seed)
    truth = {f"c{i}": rng.integers(0, 2, (size, size)) for i in range(3)}
    labels = {c: np.where(rng.random(t.shape) < flips, 1 - t, t) for c, t in truth.items()}

    def judge(now):
        def opinions():
            for chip, t in truth.items():
                wrong = np.random.default_rng(int(chip[1:])).random(t.shape) < 0.02
                sure = np.where(wrong, 1 - t, t)
                water = np.where(sure == 1, 0.95, 0.05).astype(np.float32)
                yield OutOfSample(chip, np.stack([1 - water, water]), now[chip], np.ones_like(t, bool))

        return opinions

    return truth, labels, judge


def test_relabelling_mends_and_then_stops():
    truth, labels, judge = world()
    found = relabel_in_rounds(labels, judge, 2, rounds=5)
    error = lambda said: np.mean([np.mean(said[c] != truth[c]) for c in truth])  # noqa: E731
    assert error(labels) > 0.13
    assert error(found.labels) < 0.04
    assert found.stop_reason == "settled"
    assert len(found.rounds) < 5


def test_relabelling_keeps_its_budget_and_gives_back_what_was_better():
    truth, labels, judge = world()
    tight = relabel_in_rounds(labels, judge, 2, budget=0.01)
    assert tight.stop_reason == "budget"
    assert all(np.array_equal(tight.labels[c], labels[c]) for c in truth)

    calls = []

    def drunk(now):
        calls.append({c: v.copy() for c, v in now.items()})
        return judge(now) if len(calls) == 1 else judge({c: 1 - v for c, v in now.items()})

    worse = relabel_in_rounds(labels, drunk, 2, rounds=3)
    assert worse.stop_reason == "worse"
    assert all(np.array_equal(worse.labels[c], labels[c]) for c in truth)
    with pytest.raises(UsageError, match="shares"):
        relabel_in_rounds(labels, judge, 2, budget=math.nan)


def test_relabelling_counts_its_budget_against_the_labels_as_given():
    """Each round wants another fifth of the pixels: the second would make two fifths of them other than given."""
    given = {"c": np.tile(np.arange(10)[:, None] % 2, (1, 10))}
    calls = []

    def judge(now):
        calls.append(now)
        said = now["c"].copy()
        rows = slice(2 * len(calls) - 2, 2 * len(calls))
        said[rows] = 1 - said[rows]
        water = np.where(said == 1, 0.95, 0.05).astype(np.float32)
        return lambda: [OutOfSample("c", np.stack([1 - water, water]), now["c"], np.ones((10, 10), bool))]

    found = relabel_in_rounds(given, judge, 2, rounds=5, budget=0.3)
    assert found.stop_reason == "budget" and len(calls) == 2
    assert [round_.share for round_ in found.rounds] == [0.2]
    assert np.count_nonzero(found.labels["c"] != given["c"]) == 20


def small_chips(count=8, size=32):
    draw = torch.Generator().manual_seed(0)
    lake = torch.zeros(count, size, size, dtype=torch.long)
    lake[:, 8:24, 8:24] = 1
    image = torch.stack([torch.full(lake.shape, 0.1), torch.where(lake == 1, 0.02, 0.3)], 1)
    image = image + 0.02 * torch.randn(image.shape, generator=draw)
    return image, lake


@pytest.mark.parametrize(
    ("name", "settings", "model"),
    [
        ("forward-corrected", {"matrix": [[0.9, 0.1], [0.1, 0.9]]}, "unet"),
        ("backward-corrected", {"matrix": [[0.9, 0.1], [0.1, 0.9]]}, "unet"),
        ("co-teaching", {"rate": 0.1, "ramp": 1}, "twins"),
        ("supervised", {"loss": {"name": "boundary-tolerant", "error_px": 1.0}}, "unet"),
    ],
)
def test_a_training_through_wrong_labels_resumes_to_the_same_bits(tmp_path, name, settings, model):
    image, lake = small_chips()
    wrong = torch.rand(lake.shape, generator=torch.Generator().manual_seed(1)) < 0.1
    small = {"width": 4, "depth": 2}

    def run(folder, epochs):
        torch.manual_seed(0)
        net = build("model", model, {"settings": small} if model == "twins" else small)(SPEC)
        net.standardize.fit([0.1, 0.2], [0.05, 0.15])

        def feed(epoch):
            ids = [f"c{i}@{epoch}.{i}" for i in range(len(lake))]
            return [Batch.of(image, torch.where(wrong, 1 - lake, lake), chips=ids)] * 10

        training = Training(
            epochs=epochs,
            steps_per_epoch=10,
            batch=8,
            patch=32,
            lr=1e-2,
            schedule="constant",
            warmup=0.0,
            tensorboard=False,
        )
        fit(net, build("objective", name, settings), feed, None, training, folder, device="cpu")
        return net.eval()

    net = run(tmp_path / "a", 3)
    with torch.no_grad():
        right = (net(image).argmax(1) == lake).float().mean()
    assert right > 0.9
    again = run(tmp_path / "a", 3)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), again.state_dict().values(), strict=True))

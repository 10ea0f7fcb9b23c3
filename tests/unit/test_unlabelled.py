"""Learning from chips without labels: teachers, views, pseudo-labels and the guard against one class."""

import math
import signal
from _thread import interrupt_main
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from seawall.errors import StoppedError, UsageError
from seawall.losses.segmentation import CrossEntropyLoss
from seawall.models.unet import UNet
from seawall.registry import build
from seawall.rng import Keys
from seawall.testing.fixtures import linear_model
from seawall.training.averaging import WeightAverage
from seawall.training.loop import Training, fit
from seawall.training.objectives.fixmatch import FixMatch, class_weights
from seawall.training.objectives.mean_teacher import MeanTeacher
from seawall.training.objectives.supervised import Supervised
from seawall.training.objectives.views import BOX_SHARES, RadiometricView, cutmix_boxes, mix_images
from seawall.types import Batch, ModelSpec

SPEC = ModelSpec(("B03", "B08"), ("land", "water"), "reflectance", 10.0)
QUICK = Training(epochs=3, steps_per_epoch=4, batch=4, patch=16, lr=1e-2, warmup=0.0, save_s=1e-9, tensorboard=False, ema=0.9)  # fmt: skip
CALM = {"gain": 0.0, "band_gain": 0.0, "offset": 0.0}


def make(norm: str = "batch", dropout: float = 0.2) -> torch.nn.Module:
    torch.manual_seed(0)
    model = UNet(4, 1, norm, dropout)(SPEC)
    model.standardize.fit([0.3, 0.3], [0.2, 0.2])
    return model


def toy(epoch: int) -> list[Batch]:
    """Water where the green band is the brighter one; the last two images of each batch have no label."""
    draw, made = torch.Generator().manual_seed(epoch), []
    for index in range(4):
        image = 0.6 * torch.rand(4, 2, 16, 16, generator=draw)
        label = (image[:, 0] > image[:, 1]).long()
        valid = torch.arange(4)[:, None, None].expand_as(label) < 2
        made.append(Batch.of(image, label, valid=valid, chips=[f"c{i}@{epoch}.{index}" for i in range(4)]))
    return made


def accuracy(model: torch.nn.Module) -> dict[str, float | None]:
    return {"val.iou.water": float(model(toy(99)[0].image)[:, 1].mean().detach())}


def test_the_teacher_is_the_average_at_every_step() -> None:
    model = make()
    average = WeightAverage(model, 0.9)
    teacher, image = average.network(), toy(0)[0].image
    for step in range(3):
        with torch.no_grad():
            for tensor in model.state_dict().values():
                if tensor.dtype != torch.bool:
                    tensor.add_(1)
        average.update(step)
        with average.applied():
            expected = model.eval()(image)
        assert torch.equal(teacher(image), expected), "it follows the average"
    average.load({name: tensor + 1 for name, tensor in average.tensors.items()})
    assert all(torch.equal(tensor, average.tensors[name]) for name, tensor in teacher.state_dict().items())  # type: ignore[attr-defined]
    assert not any(weight.requires_grad for weight in teacher.parameters())  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["mean-teacher", "fixmatch"])
def test_a_killed_training_with_a_teacher_goes_on_to_the_same_bits(tmp_path: Path, name: str) -> None:
    objective = build("objective", name, {"ramp": 0.5} if name == "mean-teacher" else {"confidence": 0.55, "checks": 4})
    fit(make(), objective, toy, accuracy, QUICK, tmp_path / "whole")

    asked = []  # once: a second signal ends the process

    def stopping(epoch: int):
        for index, batch in enumerate(toy(epoch)):
            if (epoch, index) == (1, 2) and not asked:
                asked.append(interrupt_main(signal.SIGTERM))
            yield batch

    with pytest.raises(StoppedError):
        fit(make(), objective, stopping, accuracy, QUICK, tmp_path / "cut")
    fit(make(), objective, toy, accuracy, QUICK, tmp_path / "cut")
    one, other = (load_file(tmp_path / part / "model.safetensors") for part in ("whole", "cut"))
    assert all(torch.equal(one[key], other[key]) for key in one)
    fit(make(), Supervised(), toy, accuracy, QUICK, tmp_path / "labels")
    labels = load_file(tmp_path / "labels/model.safetensors")
    assert not all(torch.equal(one[key], labels[key]) for key in one), "unlabelled images changed nothing"


def test_a_mean_teacher_needs_an_average_and_fixmatch_does_without(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"training\.ema: expected the decay of a teacher for MeanTeacher, got 0; 0.99"
    ):
        fit(make(), MeanTeacher(), toy, accuracy, replace(QUICK, ema=0.0), tmp_path)
    rows = fit(make(), FixMatch(), toy, accuracy, replace(QUICK, ema=0.0), tmp_path).rows
    assert {"objective.accepted", "objective.accepted.water", "objective.known.water"} <= rows[-1].keys()
    with pytest.raises(UsageError, match="expected one without a teacher, got 'mean-teacher' within another"):
        build("objective", "uniform-augmentation", {"objective": "mean-teacher"})


def test_the_consistency_of_two_linear_networks_is_their_squared_distance() -> None:
    """Without noise and labels the value is weight * mean over unlabelled seen pixels of sum_k (p_k - q_k)^2."""
    batch = toy(0)[0]
    seen = torch.rand(batch.seen.shape, generator=torch.Generator().manual_seed(1)) > 0.3
    batch = replace(batch, seen=seen, valid=batch.valid & seen)
    model, teacher = linear_model(), linear_model()
    with torch.no_grad():
        teacher.bias.add_(torch.tensor([0.5, -0.25]))
    objective = MeanTeacher(weight=3.0, **CALM)
    got = objective.taught_by(teacher)(model, batch, Keys(0, batch.chips))
    p, q = (network(batch.image).softmax(1) for network in (model, teacher))
    unknown = seen & ~batch.valid
    distance = ((p - q) ** 2).sum(1)[unknown].mean()
    supervised = Supervised()(model, batch, Keys(0, batch.chips))
    assert (
        float(got.detach()) == pytest.approx(float((supervised + 3 * distance).detach()), rel=1e-6)
        and float(distance.detach()) > 1e-3
    )
    for progress, share in ((0.0, math.exp(-5)), (0.15, math.exp(-5 / 4)), (0.3, 1.0), (0.9, 1.0)):
        assert objective.at(progress).weight == pytest.approx(3 * share)


def test_pixels_that_all_have_labels_leave_the_supervised_value_to_the_bit() -> None:
    """Without unlabelled images the semi-supervised objectives are the supervised one."""
    batch = toy(0)[0].select([0, 1])
    model, keys = make(dropout=0.0), Keys(0, batch.chips)
    expected = Supervised()(model, batch, keys)
    assert torch.equal(FixMatch()(model, batch, keys), expected)
    assert torch.equal(MeanTeacher(**CALM)(model, batch, keys), expected)


def test_unlabelled_images_do_not_decide_how_labelled_ones_are_normalized() -> None:
    """With the weight 0 value, gradients and running statistics are those of the labelled images alone; else the latter still are."""
    batch = toy(0)[0]
    known, keys = batch.select([0, 1]), Keys(0, batch.chips)
    alone = make(dropout=0.0).train()
    expected = Supervised()(alone, known, keys.select([0, 1]))
    expected.backward()
    for objective, same in (
        (FixMatch(weight=0.0), True), (MeanTeacher(weight=0.0, **CALM), True), (FixMatch(confidence=0.5), False), (MeanTeacher(**CALM).taught_by(linear_model()), False),
    ):  # fmt: skip
        model = make(dropout=0.0).train()
        value = objective(model, batch, keys)
        value.backward()
        assert torch.equal(value, expected) == same
        pairs = list(zip(model.parameters(), alone.parameters(), strict=True))
        assert all(torch.equal(one.grad, two.grad) for one, two in pairs) == same
        assert all(torch.equal(one, two) for one, two in zip(model.buffers(), alone.buffers(), strict=True))
        assert all(part.training for part in model.modules()), "modes are restored"


def test_pseudo_labels_are_counted_where_the_weak_view_is_sure_alone() -> None:
    """Without jitter and boxes: CE of the accepted pixels, divided by all unlabelled seen ones, and a class may have a threshold of its own."""
    batch = toy(0)[0]
    model, keys = linear_model(), Keys(0, batch.chips)
    own = {"brightness": 0.0, "cutmix": 0.0, **CALM}
    sure, label = model(batch.image).softmax(1).max(1)
    unknown, wrong = batch.seen & ~batch.valid, torch.nn.functional.cross_entropy(model(batch.image), label, reduction="none")  # fmt: skip
    for settings, least in (({"confidence": 0.8}, (0.8, 0.8)), ({"confidences": (0.9, 0.6)}, (0.9, 0.6))):
        accepted = unknown & (sure >= torch.tensor(least)[label])
        assert 0 < int(accepted.sum()) < int(unknown.sum())
        expected = Supervised()(model, batch, keys) + (wrong * accepted).sum() / unknown.sum()
        assert FixMatch(**settings, **own)(model, batch, keys).item() == pytest.approx(expected.item(), rel=1e-6)
    heavy = FixMatch(confidence=0.8, **own).given({"weights": [0.0, 1.0]})(model, batch, keys)
    accepted = unknown & (sure >= 0.8) & (label == 1)
    expected = Supervised()(model, batch, keys) + (wrong * accepted).sum() / unknown.sum()
    assert heavy.item() == pytest.approx(expected.item(), rel=1e-6)
    with pytest.raises(UsageError, match=r"fixmatch\.confidences: expected 2 probabilities, got 3"):
        FixMatch(confidences=(0.9, 0.9, 0.9))(model, batch, keys)


@pytest.mark.parametrize(
    ("known", "accepted", "bound", "weights"),
    [
        ((80, 20), (88, 12), 2.0, (1.0, 1.0)),  # 0.6 of the known share
        ((80, 20), (95, 5), 2.0, (0.25 / 1.1875, 1.0)),  # a quarter of it
        ((80, 20), (95, 5), 0.0, (1.0, 1.0)),  # no guard
        ((80, 20), (100, 0), 2.0, (0.0, 1.0)),  # all land
        ((80, 20), (20, 80), 2.0, (1.0, 0.25 / 4)),  # land is the rare one
        ((80, 20), (0, 0), 2.0, (1.0, 1.0)),
        ((100, 0, 0), (90, 10, 0), 2.0, (1.0, 1.0, 1.0)),  # of which nothing is known
    ],
)
def test_the_guard_brings_the_known_shares_back(known, accepted, bound, weights) -> None:
    got = class_weights(known, accepted, bound)
    assert got == pytest.approx(weights)
    if 0 < got[0] < 1:
        kept = [weight * n for weight, n in zip(got, accepted, strict=True)]
        assert kept[1] / sum(kept) == pytest.approx(known[1] / sum(known))


def test_a_network_that_sees_land_alone_is_measured_so_and_stops_teaching() -> None:
    model, batches = linear_model(), toy(0)
    with torch.no_grad():
        model.weight.zero_(), model.bias.copy_(torch.tensor([5.0, -5.0]))
    objective = FixMatch(sample=8, checks=4)
    state = objective.revise(model, lambda: batches, 0.3, 0, {})
    water = sum(float((b.label * b.valid).sum()) for b in batches[:2]) / sum(float(b.valid.sum()) for b in batches[:2])
    assert state == {
        "check": 1, "accepted": 1.0, "accepted.land": 1.0, "accepted.water": 0.0, "known.land": pytest.approx(1 - water),
        "known.water": pytest.approx(water), "weights": [0.0, 1.0],
    }  # fmt: skip
    assert objective.revise(model, lambda: [], 0.49, 0, state) is state, "nothing is due"
    batch = batches[0]
    keys = Keys(0, batch.chips)
    assert torch.equal(objective.given(state)(model, batch, keys), Supervised()(model, batch, keys))


def test_views_change_bands_as_said_and_keep_what_is_unseen() -> None:
    batch = toy(0)[0]
    batch = replace(batch, seen=batch.seen & (torch.arange(16) > 2), valid=batch.valid & (torch.arange(16) > 2))
    view = RadiometricView(0.2, 0.1, 0.01)
    keys = Keys(3, batch.chips)
    got = view(batch, "reflectance", keys).image
    assert torch.equal(got[..., :3], batch.image[..., :3]), "unseen pixels are left alone"
    slopes = []
    for before, after in zip(batch.image[..., 3:], got[..., 3:], strict=True):
        for band in range(2):
            slope, shift = torch.linalg.lstsq(torch.stack([before[band].ravel(), torch.ones(13 * 16)], 1), after[band].ravel()).solution  # fmt: skip
            assert torch.allclose(after[band], slope * before[band] + shift, atol=1e-5), "one gain and offset per band"
            assert 0.8 * 0.9 <= slope <= 1.2 * 1.1 and abs(shift) < 0.05
            slopes.append(round(float(slope), 4))
    assert len(set(slopes)) == 8, "chips and bands have their own"
    decibels = RadiometricView(0.2, 0.0, 0.0)(replace(batch, image=-10 - batch.image), "sigma0_db", keys).image
    change = (decibels - (-10 - batch.image))[..., 3:]
    assert torch.allclose(change, change[:, :1, :1, :1].expand_as(change), atol=1e-5), "a gain is an offset in dB"
    assert float(change.abs().max()) <= 10 * math.log10(1 / 0.8) + 1e-5
    alone = view(batch.select([2]), "reflectance", keys.select([2])).image
    assert torch.equal(alone[0], got[2]), "a chip draws from its own key"


def test_boxes_have_their_shares_and_bring_image_label_and_mask() -> None:
    count = 200
    ids = torch.arange(count)[:, None, None].expand(count, 32, 32)
    batch = Batch.of(ids[:, None].float(), ids % 2, valid=ids % 3 == 0)
    boxes = cutmix_boxes(batch, 1.0, Keys(0, batch.chips))
    share = boxes.float().mean((1, 2))
    assert BOX_SHARES[0] * 0.8 < float(share.min()) and float(share.max()) < BOX_SHARES[1] * 1.1
    assert float(share.mean()) == pytest.approx(sum(BOX_SHARES) / 2, abs=0.02)
    for box in boxes[:20]:
        rows, cols = box.any(1).nonzero()[:, 0], box.any(0).nonzero()[:, 0]
        inside = box[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
        assert inside.all() and inside.sum() == box.sum(), "a box is a rectangle"
    mixed = mix_images(batch, boxes)
    source = torch.where(boxes, (ids + 1) % count, ids)
    assert torch.equal(mixed.image[:, 0], source.float()) and torch.equal(mixed.label, source % 2)
    assert torch.equal(mixed.valid, source % 3 == 0)
    assert float(cutmix_boxes(batch, 0.5, Keys(0, batch.chips)).any(2).any(1).float().mean()) == pytest.approx(0.5, abs=0.12)  # fmt: skip
    assert not cutmix_boxes(batch.select([0]), 1.0, Keys(0, ("chip0",))).any(), "an image alone keeps its pixels"


def test_wrong_settings_are_refused() -> None:
    for name, settings, says in (
        ("mean-teacher", {"ramp": 2.0}, "ramp"), ("mean-teacher", {"gain": 1.0}, r"view\.gain"),
        ("fixmatch", {"confidence": 1.0}, "confidence"), ("fixmatch", {"bound": 0.5}, "bound"),
        ("fixmatch", {"checks": 0}, "checks"), ("fixmatch", {"offset": -1.0}, r"view\.offset"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=says):
            build("objective", name, settings)
    assert isinstance(FixMatch().loss, CrossEntropyLoss)

"""Calibration, temperature and passes."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from seawall.errors import DataError, ModelError, UsageError
from seawall.metrics.calibration import calibration_counts, expected_calibration_error
from seawall.types import Batch, ModelSpec
from seawall.uncertainty.dropout import MonteCarloDropout
from seawall.uncertainty.ensemble import Ensemble, mean_of_networks
from seawall.uncertainty.predictor import Softmax, aggregate_passes, entropy, top_two_margin
from seawall.uncertainty.temperature import Temperature, TemperatureScaled, fit_temperature, temperature_of
from seawall.uncertainty.tta import TTA

SPEC = ModelSpec(("B03", "B08"), ("land", "water"), "reflectance", 10.0)


class Net(nn.Module):
    """A small network that is not symmetric, drops pixels and channels, and normalizes by batch."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.spec = SPEC
        self.body = nn.Sequential(
            nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout2d(0.3), nn.Dropout(0.2), nn.Conv2d(6, 2, 3, padding=1)
        )  # fmt: skip

    def forward(self, image: Tensor) -> Tensor:
        return self.body(image)


class Given(nn.Module):
    """The image is the logits."""

    spec = SPEC

    def forward(self, image: Tensor) -> Tensor:
        return image


def images(count: int = 3, size: int = 8) -> Tensor:
    return torch.rand(count, 2, size, size, generator=torch.Generator().manual_seed(1))


def test_bins_by_hand() -> None:
    p = torch.tensor([[[0.9, 0.6], [0.45, 0.2]]])
    logits = torch.stack([p.log(), (1 - p).log()], 1)
    label = torch.tensor([[[0, 1], [1, 0]]])
    valid = torch.tensor([[[1, 1], [1, 0]]]).bool()
    got = calibration_counts(logits, label, valid, bins=5)
    assert got.count.tolist() == [[0, 0, 1, 1, 1]] and got.correct.tolist() == [[0, 0, 1, 0, 1]]
    assert got.confidence[0] == pytest.approx([0, 0, 0.55, 0.6, 0.9])
    assert expected_calibration_error(got) == pytest.approx((0.45 + 0.6 + 0.1) / 3)
    assert got.nll[0] == pytest.approx(-np.log([0.9, 0.4, 0.55]).sum())
    assert got.brier[0] == pytest.approx(2 * (0.01 + 0.36 + 0.2025))


def test_nothing_valid_has_no_error() -> None:
    got = calibration_counts(torch.zeros(1, 2, 2, 2), torch.full((1, 2, 2), 255), torch.zeros(1, 2, 2).bool())
    assert expected_calibration_error(got) is None
    with pytest.raises(UsageError, match="bin"):
        calibration_counts(torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2).long(), torch.ones(1, 2, 2).bool(), 0)


def test_calibrated_data_have_an_error_that_falls_as_one_over_root_n() -> None:
    errors = []
    for n in (10_000, 160_000):
        p = torch.rand(1, 1, n, generator=torch.Generator().manual_seed(n)).double() * 0.98 + 0.01
        label = (torch.rand(1, 1, n, generator=torch.Generator().manual_seed(n + 1)) < p).long()
        logits = torch.stack([(1 - p).log(), p.log()], 1)
        errors.append(expected_calibration_error(calibration_counts(logits, label, torch.ones_like(label).bool())))
    assert errors[0] < 0.02 and errors[1] < 0.6 * errors[0]


def overconfident(factor: float) -> Batch:
    p = torch.rand(4, 32, 32, generator=torch.Generator().manual_seed(0)) * 0.96 + 0.02
    label = (torch.rand(4, 32, 32, generator=torch.Generator().manual_seed(1)) < p).long()
    logits = factor * torch.stack([torch.zeros_like(p), (p / (1 - p)).log()], 1)
    return Batch.of(logits, label)


@pytest.mark.parametrize("factor", [0.3, 1.0, 4.0])
def test_temperature_is_found_and_changes_no_class(factor: float) -> None:
    batch = overconfident(factor)
    found = fit_temperature(Given(), [batch], pixels=None)
    value = found.values[0]
    assert found.values == pytest.approx((factor, factor), rel=0.06)
    scaled = TemperatureScaled(Given(), found)(batch.image)
    assert torch.equal(scaled.argmax(1), batch.image.argmax(1))
    z = batch.image.permute(0, 2, 3, 1).reshape(-1, 2)
    loss = lambda t: float(nn.functional.cross_entropy(z.double() / t, batch.label.flatten()))  # noqa: E731
    assert loss(value) <= min(loss(value * 1.01), loss(value / 1.01), loss(1.0))


def test_temperature_does_not_depend_on_batches() -> None:
    batch = overconfident(3.0)
    parts = [batch.select([3, 0]), batch.select([1]), batch.select([2])]
    whole, split = (fit_temperature(Given(), b, pixels=100).values for b in ([batch], parts))
    assert whole == pytest.approx(split, rel=1e-9)


def test_temperature_at_its_ends() -> None:
    z = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    assert 0.01 <= temperature_of(z, torch.tensor([0, 1])) < 0.1  # where the loss is zero to the last bit
    assert temperature_of(z, torch.tensor([1, 0])) == pytest.approx(100, rel=0.01)
    assert np.isfinite(temperature_of(torch.zeros(2, 2), torch.tensor([1, 0])))
    with pytest.raises(UsageError, match="positive"):
        Temperature(0.0)
    with pytest.raises(DataError, match="valid"):
        fit_temperature(
            Given(), [Batch.of(torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2).long(), valid=torch.zeros(1, 2, 2).bool())]
        )


def test_maps_by_hand() -> None:
    p = torch.tensor([[[[0.9]], [[0.1]]]])
    assert entropy(p).item() == pytest.approx(-(0.9 * np.log(0.9) + 0.1 * np.log(0.1)))
    assert top_two_margin(p).item() == pytest.approx(0.8)
    same = aggregate_passes([p.log()] * 5)
    assert same.mutual_information.item() == pytest.approx(0, abs=1e-7) and same.passes == 5
    split = aggregate_passes([torch.tensor([[[[50.0]], [[0.0]]]]), torch.tensor([[[[0.0]], [[50.0]]]])])
    assert split.mutual_information.item() == pytest.approx(np.log(2)) and split.margin.item() == pytest.approx(0)
    with pytest.raises(UsageError, match="pass"):
        aggregate_passes([])


@pytest.mark.parametrize("shape", [(8, 8), (6, 10)])
def test_turning_the_image_turns_the_map_exactly(shape: tuple[int, int]) -> None:
    predictor = TTA()(Net().eval())
    image = torch.rand(2, 2, *shape)
    plain = predictor.predict(image)
    for turns in range(4):
        for mirrored in (False, True):
            moved = lambda x: (x.flip(-1) if mirrored else x).rot90(turns, (-2, -1))  # noqa: B023, E731
            there = predictor.predict(moved(image))
            assert torch.equal(there.probability, moved(plain.probability))
            assert torch.equal(there.mutual_information, moved(plain.mutual_information))


def test_dropout_is_the_same_for_every_image_and_leaves_the_model_alone() -> None:
    net, image = Net().eval(), images()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    predictor = MonteCarloDropout(passes=4)(net)
    whole, alone = predictor.predict(image), predictor.predict(image[[1]])
    assert torch.allclose(whole.probability[1], alone.probability[0], atol=1e-6)
    assert float(whole.mutual_information.min()) >= 0 and float(whole.mutual_information.max()) > 1e-4
    assert torch.equal(predictor.predict(image).probability, predictor.predict(image).probability)
    other = MonteCarloDropout(passes=4, seed=1)(net).predict(image)
    assert not torch.equal(whole.probability, other.probability)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert torch.equal(net(image), Softmax()(net).inner(image)) and not any(m.training for m in net.modules())
    assert not any(m._forward_hooks for m in net.modules())


def test_dropout_of_many_passes_is_unbiased_in_the_first_layer() -> None:
    """One dropout layer and nothing after it: the mean over passes goes to the input."""
    net = nn.Dropout(0.4)
    net.spec = SPEC
    predictor = MonteCarloDropout(passes=2000)(net.eval())
    total = torch.stack(list(predictor.method.pass_logits(predictor.inner, torch.ones(1, 2, 2, 2)))).mean(0)
    assert total == pytest.approx(torch.ones(1, 2, 2, 2), abs=0.08)
    assert torch.equal(
        total, total[:, :, :1, :1].expand_as(total)
    )  # whole feature maps, also of a layer that drops pixels


def test_dropout_needs_something_to_drop() -> None:
    with pytest.raises(ModelError, match="dropout"):
        MonteCarloDropout()(Given())
    with pytest.raises(UsageError, match="passes"):
        MonteCarloDropout(passes=0)


def test_ensemble_averages_and_checks_its_members() -> None:
    a, b, image = Net(0).eval(), Net(1).eval(), images()
    got = mean_of_networks(a, [b]).predict(image)
    mean = (torch.softmax(a(image), 1) + torch.softmax(b(image), 1)) / 2
    assert torch.allclose(got.probability, mean, atol=1e-6) and got.passes == 2
    assert torch.equal(mean_of_networks(a, [a]).predict(image).mutual_information, torch.zeros(3, 8, 8))
    other = Given()
    other.spec = ModelSpec(("VV", "VH"), ("land", "water"), "sigma0_db", 10.0)
    with pytest.raises(ModelError, match="ensemble"):
        mean_of_networks(a, [other])
    with pytest.raises(ModelError, match="expected members, got none"):
        Ensemble()(a)


def test_predictor_is_a_model_with_gradients() -> None:
    image = images().requires_grad_()
    predictor = TTA()(Net().eval())
    logits = predictor(image)
    assert torch.allclose(torch.softmax(logits, 1), predictor.predict(image.detach()).probability, atol=1e-6)
    logits[:, 1].sum().backward()
    assert image.grad is not None and float(image.grad.abs().sum()) > 0

"""What every water index must keep."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch

from seawall.arrays import DoubleArray, FloatArray
from seawall.errors import DataError, RadiometryError
from seawall.labels.rules import ThresholdRule
from seawall.labels.water_indices import WaterIndex, parse_index
from seawall.models.water_index import ThresholdNet, WaterIndexThreshold
from seawall.registry import Entry
from seawall.testing.assertions import made
from seawall.testing.fixtures import ground_spectra
from seawall.types import ModelSpec, Unit

POINTS = 4000
INDEX_CLASSES = ("land", "water")
RANGES = {"reflectance": (0.0, 1.0), "sigma0_db": (-30.0, 5.0), "gamma0_db": (-30.0, 5.0)}
"""Values of random pixels per unit."""


def check_its_text_is_read_back(entry: Entry) -> None:
    """The text of an index, as rules and recipes have it, starts with its registered name and gives the same index."""
    index = made(entry, WaterIndex)
    assert str(index).split()[0] == entry.name, f"set name = {entry.name!r}; its text is {str(index)!r}"
    assert parse_index(str(index)) == index, f"{str(index)!r} is read as {parse_index(str(index))!r}"


def check_water_is_on_the_declared_side(entry: Entry) -> None:
    """Clear water is on the declared side of natural land, dry and lush, and of the published threshold."""
    index = made(entry, WaterIndex)
    bands, water, land = ground_spectra(index.units[0])
    spectra = np.concatenate([water[None], land]).T[:, :, None]
    values, _ = index(spectra, np.ones(spectra.shape[1:], bool), bands, index.units[0])
    wet, dry = index.sign * values[0, 0], index.sign * values[1:, 0]
    assert wet > dry.max(), f"sign {index.sign}: water {values[0, 0]:g}, land {values[1:, 0].round(3).tolist()}"
    assert wet > index.sign * index.threshold, f"water has {values[0, 0]:g}, the threshold is {index.threshold:g}"


def check_values_lie_within_the_span(entry: Entry) -> None:
    """Reflectance from 0 to 1, its extremes included, gives values within the span; so does backscatter in dB."""
    index = made(entry, WaterIndex)
    image = _random_pixels(index)
    image[:, 0, ::2] = np.where(image[:, 0, ::2] > image.mean(), image.max(), image.min())
    values, defined = index(image, np.ones(image.shape[1:], bool), index.bands, index.units[0])
    low, high = index.span
    found = values[defined]
    assert low - 1e-6 <= found.min() and found.max() <= high + 1e-6, f"span {index.span}: {found.min()}, {found.max()}"


def check_brightness_counts_as_declared(entry: Entry) -> None:
    """A factor on all bands leaves the index as it is if and only if it has the trait `scale-invariant`."""
    index = made(entry, WaterIndex)
    image = _random_pixels(index)
    seen = np.ones(image.shape[1:], bool)
    values, darker = (index(image * np.float32(factor), seen, index.bands, index.units[0])[0] for factor in (1, 0.5))
    same = np.allclose(values, darker, atol=1e-5, equal_nan=True)
    declared = "scale-invariant" in entry.traits
    assert same == declared, f"trait scale-invariant: declared {declared}, found {same}"


def check_what_it_cannot_measure_is_refused(entry: Entry) -> None:
    """An image without one of the bands is refused with the name of the band, and so is another unit."""
    index = made(entry, WaterIndex)
    image = _random_pixels(index)
    seen = np.ones(image.shape[1:], bool)
    for gone, band in enumerate(index.bands):
        others = tuple("B10" if name == band else name for name in index.bands)
        try:
            index(image, seen, others, index.units[0])
        except DataError as bad:
            assert band in str(bad), f"the message names no {band}: {bad}"
        else:
            raise AssertionError(f"an image without band {gone}, {band}, was accepted")
    for unit in {"reflectance", "sigma0_db", "gamma0_db", "stretched"} - set(index.units):
        try:
            index(image, seen, index.bands, unit)
        except RadiometryError:
            continue
        raise AssertionError(f"an image in {unit} was accepted")


def check_unseen_pixels_have_no_value(entry: Entry) -> None:
    """Unseen pixels are NaN and undefined, whatever they hold; others do not depend on them; the image is not written to."""
    index = made(entry, WaterIndex)
    image = _random_pixels(index)
    seen = np.random.default_rng(1).random(image.shape[1:]) < 0.7
    first, defined = index(image, seen, index.bands, index.units[0])
    holes = np.where(seen, image, np.float32(np.nan))
    kept = holes.copy()
    second, _ = index(holes, seen, index.bands, index.units[0])
    assert not (defined & ~seen).any() and np.isnan(first[~defined]).all(), "an unseen pixel has a value"
    assert np.array_equal(first, second, equal_nan=True), "a value depends on unseen pixels"
    assert np.array_equal(holes, kept, equal_nan=True), "the index wrote to its image"


def check_labels_and_models_agree(entry: Entry) -> None:
    """The rule and the model `threshold` of the index give the same values and the same map, with a finite gradient."""
    index = made(entry, WaterIndex)
    image = _random_pixels(index) + np.float32(0.01)
    unit = cast(Unit, index.units[0])
    values, defined = index(image, np.ones(image.shape[1:], bool), index.bands, unit)
    at = float(np.median(values[defined]))
    model = WaterIndexThreshold(str(index), threshold=at)(ModelSpec(index.bands, INDEX_CLASSES, unit, 10.0))
    assert isinstance(model, ThresholdNet)
    tensor = torch.from_numpy(image[None]).requires_grad_()
    found, where = model.measure(tensor)
    assert np.array_equal(where[0].numpy(), defined), "NumPy and PyTorch differ in where the index is defined"
    apart = np.abs(found[0].detach().numpy() - values)[defined].max()
    assert apart < 1e-4 * max(np.abs(index.span)), f"NumPy and PyTorch differ by {apart:g}"
    label = ThresholdRule(index, at)(image, np.ones(image.shape[1:], bool), index.bands, unit).label
    clear = np.abs(values - at) > 1e-3  # a pixel at the threshold may round to either side
    assert np.array_equal(model(tensor).argmax(1)[0].numpy()[clear], label[clear]), "the model's map is not the rule's"
    assert bool(torch.autograd.grad(found.sum(), tensor)[0].isfinite().all()), "the gradient is not finite"


def check_the_exact_worst_case_holds(entry: Entry) -> None:
    """With `slopes`, `index > t` is a linear inequality with these signs: it cuts no segment twice, and grows along them."""
    index = made(entry, WaterIndex)
    if not index.slopes:
        return
    assert len(index.slopes) == len(index.roles) and set(index.slopes) <= {-1, 1}, f"{index.slopes}: one sign per band"
    (low, high), rng = RANGES[index.units[0]], np.random.default_rng(2)
    a, b = (_random_pixels(index, seed, below=0.05) for seed in (3, 4))  # negative reflectance too
    step = np.zeros_like(a)
    step[rng.integers(len(a), size=POINTS), 0, np.arange(POINTS)] = rng.uniform(0, 0.5 * (high - low), POINTS)
    onward = a + step * np.array(index.slopes, np.float32)[:, None, None]
    threshold = 0.98 * rng.uniform(*index.span, POINTS)
    at_a, at_b, at_mid, at_onward = (
        _side(index, image, threshold) for image in (a, b, np.float32(0.5) * (a + b), onward)
    )
    within = at_a * at_b * at_mid * at_onward != 0
    assert not (within & (at_a == at_b) & (at_mid != at_a)).any(), (
        "the set of index > t is not linear; leave out slopes"
    )
    assert not (within & (at_a > at_onward)).any(), f"a band moved along {index.slopes} took water's side away"


def _side(index: WaterIndex, image: FloatArray, threshold: DoubleArray) -> FloatArray:
    """Return 1 above the threshold, -1 below, 0 where it is undefined or too near to tell."""
    values, defined = index(image, np.ones(image.shape[1:], bool), index.bands, index.units[0])
    apart = np.nan_to_num(values[0] - threshold)
    return np.where(defined[0] & (np.abs(apart) > 1e-5), np.sign(apart), 0).astype(np.float32)


def _random_pixels(index: WaterIndex, seed: int = 0, below: float = 0.0) -> FloatArray:
    """Return random pixels (C, 1, N) of the range, widened downwards by a share of it."""
    low, high = RANGES[index.units[0]]
    shape = (len(index.roles), 1, POINTS)
    return np.random.default_rng(seed).uniform(low - below * (high - low), high, shape).astype(np.float32)


CHECKS = [value for name, value in list(globals().items()) if name.startswith("check_")]

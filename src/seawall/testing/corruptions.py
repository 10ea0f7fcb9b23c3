"""What every corruption must keep."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

from seawall.bands import channels_of_sources
from seawall.chip_context import ChipContext
from seawall.corruptions.build import build_corruption
from seawall.errors import UsageError
from seawall.records import SEVERITIES
from seawall.registry import Entry
from seawall.rng import Keys
from seawall.testing.assertions import quiet_random, same_batch, same_bits
from seawall.types import FILL, Batch, Corruption, Unit, fill_of, per_channel

CHIP_SIZE = 48
OPTICAL_CHIPS = ChipContext(10.0, ("B02", "B03", "B04", "B08", "B11", "B12"), "reflectance", ("land", "water"))
TWO_SOURCE_CHIPS = ChipContext(
    10.0, ("s1.VV", "s1.VH", "s2.B02", "s2.B03", "s2.B04", "s2.B08", "s2.B11", "s2.B12"),
    ("sigma0_db",) * 2 + ("reflectance",) * 6, ("land", "water"),
)  # fmt: skip
RADAR_CHIPS = ChipContext(10.0, ("VV", "VH"), "sigma0_db", ("land", "water"))


def check_zero_is_identity(entry: Entry) -> None:
    """Severity 0 returns the very values, to the bit."""
    for corruption, batch in _cases(entry):
        assert same_batch(_corrupted(corruption, batch, 0.0), batch), "severity 0 changed something"


def check_severity_has_limits(entry: Entry) -> None:
    """A severity outside [0, 1] is refused by the call and by `level`."""
    for corruption, batch in _cases(entry):
        for severity in (-0.1, 1.1, math.nan):
            for refuse in (partial(_corrupted, corruption, batch), corruption.level):
                try:
                    refuse(severity)
                except UsageError:
                    continue
                raise AssertionError(f"severity {severity} was taken")


def check_level_is_monotone(entry: Entry) -> None:
    """The physical quantity changes with the severity, in one direction only, and has a name."""
    for corruption, _ in _cases(entry):
        levels = [corruption.level(s) for s in (0.0, *SEVERITIES)]
        steps = [after - before for before, after in pairwise(levels)]
        assert all(step >= 0 for step in steps) or all(step <= 0 for step in steps), f"levels {levels}"
        assert levels[0] != levels[-1] and all(map(math.isfinite, levels)), f"levels {levels}"
        assert corruption.quantity, "the quantity has no name"


def check_only_what_is_there(entry: Entry) -> None:
    """The input is not written to; unseen pixels keep their fill; types, shapes and ids stay; all is finite."""
    for corruption, batch in _cases(entry):
        before = batch.copy()
        after = _corrupted(corruption, batch, 0.7)
        assert same_batch(batch, before), "the corruption wrote to its batch"
        assert after.chips == batch.chips, "the chips changed"
        assert after.image.dtype == batch.image.dtype and after.image.shape == batch.image.shape
        assert after.label.dtype == batch.label.dtype and after.seen.dtype == after.valid.dtype == torch.bool
        assert bool(after.image.isfinite().all()), "a value is not finite"
        assert not bool((after.valid & ~after.seen).any()), "a pixel is valid but unseen"
        fill = batch.image[:1, :, :1, :1]
        assert bool(((after.image == fill) | after.image_seen).all()), "an unseen pixel lost its fill"
        labels = after.label[after.valid]
        assert bool(((labels >= 0) & (labels < 2)).all()), "a valid label is no class"


def check_harm_grows(entry: Entry) -> None:
    """What changes (values, and pixels of label, seen and valid) does not shrink with severity, averaged over chips."""
    for corruption, batch in _cases(entry):
        harms = [_harm(batch, _corrupted(corruption, batch, s)) for s in SEVERITIES]
        assert harms[-1] > 0, "severity 1 changed nothing"
        for before, after in pairwise(harms):
            assert after >= before * 0.97 - 1e-9, f"the change shrinks with severity: {harms}"


def check_only_its_keys(entry: Entry) -> None:
    """Randomness comes from the keys alone."""
    for corruption, batch in _cases(entry):
        with quiet_random():
            first = _corrupted(corruption, batch, 0.6)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(999)
            assert same_batch(first, _corrupted(corruption, batch, 0.6)), "the same keys gave another result"


def check_images_do_not_see_each_other(entry: Entry) -> None:
    """A batch equals its images one by one and in another order."""
    for corruption, batch in _cases(entry):
        whole = _corrupted(corruption, batch, 0.6)
        for i in range(len(batch)):
            alone = _corrupted(corruption, batch.select([i]), 0.6)
            assert same_batch(whole.select([i]), alone), "an image depends on its batch"
        order = list(range(len(batch)))[::-1]
        assert same_batch(whole.select(order), _corrupted(corruption, batch.select(order), 0.6))


def check_nothing_seen(entry: Entry) -> None:
    """A chip without data comes back as it is."""
    for corruption, batch in _cases(entry):
        nothing = torch.zeros_like(batch.seen)
        fill = batch.image[:1, :, :1, :1].expand_as(batch.image).clone()
        empty = replace(batch, image=fill, seen=nothing, valid=nothing)
        after = _corrupted(corruption, empty, 1.0)
        assert same_bits(after.image, empty.image) and not bool(after.seen.any() or after.valid.any())


def check_labels_of_invalid_pixels_mean_nothing(entry: Entry) -> None:
    """Whatever an invalid pixel's label says, image, masks and valid labels come out the same."""
    for corruption, batch in _cases(entry):
        first = _corrupted(corruption, batch, 0.8)
        for value in (0, 1, 255, -1):
            other = _corrupted(corruption, replace(batch, label=torch.where(batch.valid, batch.label, value)), 0.8)
            same = same_bits(first.image, other.image) and same_bits(first.valid, other.valid)
            assert same and torch.equal(first.label[first.valid], other.label[other.valid]), f"label {value} matters"


def check_traits_are_true(entry: Entry) -> None:
    """`radiometric` leaves label, seen and valid; `geometric` moves them as the image; without either valid shrinks."""
    for corruption, batch in _cases(entry):
        after = _corrupted(corruption, batch, 1.0)
        stays = all(same_bits(after.planes[name], plane) for name, plane in batch.planes.items() if name != "image")
        if batch.seen_bands is not None:  # a pixel counts as long as another source sees it
            assert stays or "radiometric" not in entry.traits, "radiometric: declared, but not true of several sources"
            continue
        assert stays == ("radiometric" in entry.traits), "radiometric: declared and not true, or true and not declared"
        if "geometric" in entry.traits:
            _assert_label_moves_with_image(corruption, batch)
        elif not stays:
            assert same_bits(after.label, batch.label), "a corruption that is not geometric moved labels"
            assert int(after.valid.sum()) < int(batch.valid.sum()), "valid did not shrink"


def check_other_sensors_are_refused(entry: Entry) -> None:
    """An optical corruption refuses radar chips and the other way round; one without such a trait takes both."""
    for trait, other in (("optical", RADAR_CHIPS), ("radar", OPTICAL_CHIPS)):
        if trait not in entry.traits:
            continue
        try:
            build_corruption(entry.name, entry.smoke, other)
        except UsageError:
            continue
        raise AssertionError(f"{trait}: it took chips in {other.unit}")


def check_sources_are_corrupted_apart(entry: Entry) -> None:
    """Of chips of several sources, those of another sensor stay bit for bit; where the ground moves, it does so in all of them."""
    corruption, batch = _case_of_two_sources(entry)
    after = _corrupted(corruption, batch, 1.0)
    sources = channels_of_sources(TWO_SOURCE_CHIPS.bands)
    for trait, other in (("optical", "s1"), ("radar", "s2")):
        if trait in entry.traits and entry.name != "composition":
            at = list(sources[other])
            same = same_bits(after.image[:, at], batch.image[:, at]) and same_bits(
                after.image_seen[:, at], batch.image_seen[:, at]
            )
            assert same, f"{trait}: it changed {other}"
    assert torch.equal(after.seen, after.image_seen.any(1)), "seen is not where any source is"
    if "geometric" in entry.traits:
        dark = per_channel([-20.0] * 2 + [0.1] * 6, batch.image)
        bright = per_channel([-10.0] * 2 + [0.5] * 6, batch.image)
        everywhere = torch.ones_like(batch.image, dtype=torch.bool)
        shown = torch.where(batch.label[:, None] == 1, dark, bright)
        moved = _corrupted(corruption, replace(batch, image=shown, seen=everywhere[:, 0], seen_bands=everywhere), 1.0)
        read = moved.image < (dark + bright) / 2
        apart = (read != read[:, :1]) & moved.image_seen
        assert float(apart.float().mean()) <= 0.02, "the sources moved apart"


def check_joint_needs_several_sources(entry: Entry) -> None:
    """A `joint` corruption is about the sources of a chip, and refuses chips of one."""
    if "joint" not in entry.traits:
        return
    try:
        build_corruption(entry.name, entry.smoke, OPTICAL_CHIPS)
    except UsageError:
        return
    raise AssertionError("joint: it took chips of one source")


def _assert_label_moves_with_image(corruption: Corruption, batch: Batch) -> None:
    """An image that shows the label is, after the corruption, an image of the new label."""
    dark, bright = (-20.0, -10.0) if float(batch.image[0, 0, 0, 0]) < -1 else (0.1, 0.5)
    label = lake_label(len(batch), CHIP_SIZE)
    shown = torch.where(label == 1, dark, bright)[:, None].expand_as(batch.image)
    everywhere = torch.ones_like(batch.seen)
    after = _corrupted(corruption, Batch(shown, label, everywhere, everywhere, batch.chips), 1.0)
    assert not torch.equal(after.label, label), "the label did not move"
    assert bool((after.seen == after.valid).all()), "seen and valid moved differently"
    read = (after.image[:, 0] < (dark + bright) / 2).long()
    # where the label's border runs through a pixel, both are right
    inner = after.seen & (_box(after.label) % 1 == 0) & (_box(after.seen) == 1)
    wrong = float((read != after.label)[inner].float().mean())
    assert bool(inner.any()) and wrong <= 0.01, f"{100 * wrong:.1f} % of the inner pixels show another label"


def _box(plane: Tensor) -> Tensor:
    mean = functional.avg_pool2d(plane[:, None].float(), 3, stride=1, padding=1, count_include_pad=False)
    return (mean[:, 0] * 1e4).round() / 1e4


def _harm(before: Batch, after: Batch) -> float:
    both = (before.image_seen & after.image_seen).expand_as(before.image)
    change = (after.image - before.image)[both].double()
    rms = float(change.square().mean().sqrt()) if change.numel() else 0.0
    moved = (
        (before.image_seen != after.image_seen).any(1) | (before.valid != after.valid) | (before.label != after.label)
    )
    return rms + float(moved.float().mean())


def _cases(entry: Entry) -> list[tuple[Corruption, Batch]]:
    """Return the corruption for each sensor that it is of, with chips of that sensor."""
    contexts = [c for trait, c in (("radar", OPTICAL_CHIPS), ("optical", RADAR_CHIPS)) if trait not in entry.traits]
    contexts = [] if "joint" in entry.traits else contexts
    return [*(_case(entry, context) for context in contexts), _case_of_two_sources(entry)]


def _case_of_two_sources(entry: Entry) -> tuple[Corruption, Batch]:
    return _case(entry, TWO_SOURCE_CHIPS)


def _case(entry: Entry, context: ChipContext) -> tuple[Corruption, Batch]:
    corruption = build_corruption(entry.name, entry.smoke, context)
    assert isinstance(corruption, Corruption), f"{entry.name}: expected a Corruption, got {type(corruption).__name__}"
    return corruption, lake_chips(context)


def _corrupted(corruption: Corruption, batch: Batch, severity: float) -> Batch:
    return corruption(batch, severity, Keys(0, batch.chips))


def lake_chips(context: ChipContext, images: int = 3, size: int = CHIP_SIZE) -> Batch:
    """Return chips of smooth land with a lake, with unseen and invalid pixels; unseen is the corner (0, 0) of each.

    The second source of several is unseen at the left edge as well.
    """
    unit = context.unit
    if isinstance(unit, tuple):
        return _stacked_sources(
            context,
            [lake_chips(context.of_channels(own), images, size) for own in channels_of_sources(context.bands).values()],
        )
    draw = torch.Generator().manual_seed(0)
    rows, cols = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    label = lake_label(images, size)
    bands = len(context.bands)
    land, water = (torch.linspace(a, b, bands).view(1, -1, 1, 1) for a, b in _brightness(unit))
    swing = 1 if unit == "reflectance" else 8
    waves = 0.04 * swing * (torch.sin(rows / 5.0) * torch.cos(cols / 7.0))
    grain = 0.005 * swing * torch.randn(images, bands, size, size, generator=draw)
    image = torch.where(label[:, None] == 1, water, land) + waves + grain
    seen = torch.ones_like(label, dtype=torch.bool)
    seen[:, :3, :4] = False
    seen[:, 20:24, 30:33] = False
    valid = seen & (torch.rand(label.shape, generator=draw) > 0.05)
    image = torch.where(seen[:, None], image, FILL[unit])
    return Batch(image, torch.where(valid, label, 255), seen, valid, tuple(f"lake{i}" for i in range(images)))


def _stacked_sources(context: ChipContext, parts: Sequence[Batch]) -> Batch:
    known = torch.cat([part.seen[:, None].expand_as(part.image) for part in parts], 1).clone()
    other = len(parts[0].image[0])
    known[:, other:, :, :6] = False
    fill = per_channel(fill_of(context.unit, len(context.bands)), parts[0].image)
    image = torch.where(known, torch.cat([part.image for part in parts], 1), fill)
    return replace(parts[0], image=image, seen=known.any(1), seen_bands=known)


def lake_label(images: int, size: int) -> Tensor:
    """Return labels (B, H, W) of round lakes of different sizes."""
    rows, cols = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    radius = torch.linspace(0.2, 0.35, images)[:, None, None] * size
    return ((rows - size * 0.45) ** 2 + (cols - size * 0.55) ** 2 < radius**2).long()


def _brightness(unit: Unit) -> tuple[tuple[float, float], tuple[float, float]]:
    return ((0.15, 0.35), (0.08, 0.06)) if unit == "reflectance" else ((-9.0, -15.0), (-18.0, -25.0))


CHECKS = [value for name, value in list(globals().items()) if name.startswith("check_")]

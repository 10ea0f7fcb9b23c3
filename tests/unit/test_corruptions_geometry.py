"""Geometric corruptions: what moves where, and together with what."""

import math

import pytest
import torch
from torch import Tensor

from seawall.corruptions.geometry import (
    CoarseGrid,
    ElasticWarp,
    GeolocationError,
    LensDistortion,
    NodataWedge,
    Rotation,
    Translation,
    TransparencyDistortion,
)
from seawall.corruptions.spatial import shift_batch
from seawall.errors import UsageError
from seawall.rng import Keys
from seawall.types import Batch, Corruption


def run(corruption: Corruption, batch: Batch, severity: float = 1.0, seed: int = 0) -> Batch:
    return corruption(batch, severity, Keys(seed, batch.chips))


def noise_chip(size: int = 32, bands: int = 2) -> Batch:
    draw = torch.Generator().manual_seed(0)
    image = torch.rand(1, bands, size, size, generator=draw)
    return Batch.of(image, (torch.rand(1, size, size, generator=draw) > 0.5).long())


def ramps(size: int) -> Batch:
    """Two bands that hold row and column: bilinear interpolation of them is exact, and shows the backward map."""
    rows, cols = torch.meshgrid(torch.arange(float(size)), torch.arange(float(size)), indexing="ij")
    return Batch.of(torch.stack([rows, cols])[None], torch.zeros(1, size, size, dtype=torch.int64))


def displacement(corruption: Corruption, size: int, severity: float = 1.0) -> tuple[Tensor, Tensor]:
    batch = ramps(size)
    after = run(corruption, batch, severity)
    moved = torch.where(after.seen[:, None], after.image - batch.image, 0.0)
    return moved[0, 0], moved[0, 1]


@pytest.mark.parametrize("unit", ["reflectance", "sigma0_db"])
def test_a_shift_by_whole_pixels_moves_image_label_seen_and_valid_alike(unit: str) -> None:
    batch = noise_chip()
    holes = torch.rand(1, 32, 32, generator=torch.Generator().manual_seed(1)) > 0.05
    batch = Batch.of(torch.where(holes[:, None], batch.image, 0.0), batch.label, seen=holes)
    after = shift_batch(batch, torch.tensor([2.0]), torch.tensor([-1.0]), unit, moves_label=True)
    inner = (slice(None), slice(2, -2), slice(2, -2))
    for name in ("label", "seen", "valid"):
        assert torch.equal(getattr(after, name)[inner], torch.roll(getattr(batch, name), (2, -1), (1, 2))[inner])
    moved = torch.roll(batch.image, (2, -1), (2, 3))
    at = after.seen[inner]
    if unit == "sigma0_db":  # the phase of the other unit needs every pixel
        torch.testing.assert_close(
            after.image[:, :, 2:-2, 2:-2].movedim(1, -1)[at],
            moved[:, :, 2:-2, 2:-2].movedim(1, -1)[at],
            atol=1e-4,
            rtol=0,
        )
    assert not bool(after.seen[:, :2].any() or after.seen[:, :, -1:].any()), "what comes from outside is unseen"


def test_a_shift_has_its_length_and_a_geolocation_error_leaves_the_label() -> None:
    for corruption in (Translation(), GeolocationError()):
        down, right = (plane[8:-8, 8:-8].mean() for plane in displacement(corruption, 64, 0.75))
        assert math.hypot(down, right) == pytest.approx(1.5, abs=0.02)
    batch = noise_chip()
    after = run(GeolocationError(), batch)
    assert torch.equal(after.label, batch.label)
    assert torch.equal(after.valid, after.seen) and 0 < int((~after.seen).sum()) < 200


def test_a_quarter_turn_is_the_quarter_turn() -> None:
    batch = noise_chip()
    after = run(Rotation(worst=180.0), batch, 0.5)
    turned = [torch.rot90(batch.image, k, (2, 3)) for k in (1, -1)]
    k = min((0, 1), key=lambda i: float((after.image - turned[i]).abs().max()))
    torch.testing.assert_close(after.image, turned[k], atol=1e-4, rtol=0)
    assert torch.equal(after.label, torch.rot90(batch.label, (1, -1)[k], (1, 2)))


def test_the_local_distortion_moves_by_at_most_its_bound_and_does_not_fold() -> None:
    size, cell = 192, 64
    for severity in (0.5, 1.0):
        warp = TransparencyDistortion(cell_px=cell)
        down, right = displacement(warp, size, severity)
        bound = 0.0916 * warp.level(severity) * cell / 2
        moved = torch.hypot(down, right)
        assert 0.6 * bound < float(moved.max()) <= bound * 1.001
        assert float(torch.stack([moved[::cell], moved[cell - 1 :: cell]]).max()) < 0.02 * bound, (
            "cells do not fit together"
        )
        assert float(jacobian(down, right).min()) > 0


def jacobian(down: Tensor, right: Tensor) -> Tensor:
    """Determinant of the backward map, by differences."""
    rr, rc = down[1:, :-1] - down[:-1, :-1] + 1, down[:-1, 1:] - down[:-1, :-1]
    cr, cc = right[1:, :-1] - right[:-1, :-1], right[:-1, 1:] - right[:-1, :-1] + 1
    return rr * cc - rc * cr


def test_the_bounds_of_the_local_distortion_are_where_its_map_turns_back() -> None:
    r = torch.linspace(0, 1, 20001, dtype=torch.float64)

    def steepness(k: float) -> float:
        return float((r + k * r**3 * (1 - r**2) ** 2).diff().min())

    assert steepness(-3.88) > 0 > steepness(-3.90)
    assert steepness(2.35) > 0 > steepness(2.37)
    displaced = r**3 * (1 - r**2) ** 2
    assert float(displaced.max()) == pytest.approx(0.0916, abs=1e-4)
    assert float(r[displaced.argmax()]) == pytest.approx(math.sqrt(3 / 7), abs=1e-3)
    for build in (lambda: TransparencyDistortion(worst=2.37), lambda: LensDistortion(worst=0.34)):
        with pytest.raises(UsageError, match="the map folds"):
            build()


def test_the_lens_moves_points_by_the_cube_of_their_distance() -> None:
    size = 65
    down, right = displacement(LensDistortion(), size)
    half = math.hypot(size, size) / 2
    for row, col in ((32, 48), (20, 32), (40, 40)):
        r = math.hypot(row - 32, col - 32) / half
        moved = math.hypot(float(down[row, col]), float(right[row, col]))
        assert moved == pytest.approx(0.3 * r**3 * half, rel=1e-3)


def test_an_elastic_warp_has_its_root_mean_square_displacement_and_does_not_fold() -> None:
    down, right = displacement(ElasticWarp(), 256, 0.5)
    inner = (slice(16, -16), slice(16, -16))
    rms = float((down[inner].square() + right[inner].square()).mean().sqrt())
    assert rms == pytest.approx(2.0, rel=0.1)
    assert float(jacobian(down[inner], right[inner]).min()) > 0


def test_a_nodata_wedge_has_its_area_and_holds_fill() -> None:
    for unit, fill in (("reflectance", 0.0), ("sigma0_db", -30.0)):
        after = run(NodataWedge(image_unit=unit), noise_chip(100), 0.5)
        gone = ~after.seen
        assert float(gone.float().mean()) == pytest.approx(0.3, abs=1e-3)
        assert torch.equal(gone, ~after.valid) and bool((after.image.movedim(1, -1)[gone] == fill).all())
        assert len({int(row.sum()) for row in gone[0]}) > 10, "the edge is tilted"


@pytest.mark.parametrize("size", [20.0, 27.3, 30.0, 60.0])
def test_a_coarser_grid_keeps_the_mean_of_what_is_seen(size: float) -> None:
    batch = noise_chip(50)
    seen = torch.rand(1, 50, 50, generator=torch.Generator().manual_seed(1)) > 0.1
    batch = Batch.of(torch.where(seen[:, None], batch.image, 0.0), batch.label, seen=seen)
    after = run(CoarseGrid(10.0), batch, (size - 10) / 50)
    before, now = ((b.image.double() * seen[:, None]).sum((2, 3)) / seen.sum() for b in (batch, after))
    torch.testing.assert_close(now, before, atol=1e-6, rtol=0)


def test_whole_cells_are_means_of_their_pixels_and_decibels_of_their_power() -> None:
    batch = noise_chip(24)
    cells = batch.image.view(1, 2, 12, 2, 12, 2)
    after = run(CoarseGrid(10.0), batch, 0.2).image.view(1, 2, 12, 2, 12, 2)  # 20 m
    torch.testing.assert_close(after, cells.mean((3, 5), keepdim=True).expand_as(after))
    decibels = Batch.of(batch.image * -20, batch.label)
    radar = run(CoarseGrid(10.0, "sigma0_db"), decibels, 0.2).image.view(1, 2, 12, 2, 12, 2)
    power = torch.pow(10, -2 * cells).mean((3, 5), keepdim=True)
    torch.testing.assert_close(radar, (10 * power.log10()).expand_as(radar), atol=1e-4, rtol=1e-4)

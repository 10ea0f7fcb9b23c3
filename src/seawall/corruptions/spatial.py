"""Random fields, filters in the frequency domain and backward warps over a batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from seawall.decibels import from_power, is_decibels, to_power
from seawall.rng import Keys
from seawall.types import FILL, Batch, Unit

PAD = 16
"""Pixels by which an image is mirrored at its edges before a filter in the frequency domain, which is periodic."""

TransferFunction = Callable[[Tensor, Tensor], Tensor]
"""From frequencies fy (H, 1) and fx (1, W/2+1) in cycles per pixel to a transfer function that broadcasts to (B, C, H, W/2+1)."""


def frequencies(height: int, width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return fy (H, 1) and fx (1, W/2+1) in cycles per pixel."""
    fy = torch.fft.fftfreq(height, dtype=like.dtype, device=like.device)[:, None]
    return fy, torch.fft.rfftfreq(width, dtype=like.dtype, device=like.device)[None]


def inverse_transform(spectrum: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the real inverse transform of each chip (B, ...), the same to the bit in any batch.

    The library takes another path for many transforms than for one, with other rounding: hence chip by chip.
    """
    return torch.stack([torch.fft.irfft2(one, s=size) for one in spectrum])


def standardize(field: Tensor) -> Tensor:
    """Return the field (B, H, W) with mean 0 and variance 1 in each chip."""
    centered = field - field.mean((1, 2), keepdim=True)
    return centered / centered.square().mean((1, 2), keepdim=True).sqrt().clamp_min(1e-12)


def power_law_field(keys: Keys, size: Sequence[int], scale_px: float, like: Tensor, slope: float = 3.0) -> Tensor:
    """Return a random field (B, H, W) of mean 0 and variance 1 per chip with a power-law spectrum.

    Args:
        keys: One stream per chip.
        size: (H, W).
        scale_px: Wavelength in pixels above which the spectrum is flat: the size of the largest shapes.
        like: A tensor of the wanted type and device.
        slope: Exponent by which the power falls with the frequency; 2 is rough, 4 is smooth.
    """
    white = keys.normal(size).to(like)
    height, width = size
    fy, fx = frequencies(height, width, like)
    corner = 1 / min(max(scale_px, 2.0), float(max(size)))
    amplitude = (fy.square() + fx.square() + corner**2).pow(-slope / 4)
    return standardize(inverse_transform(torch.fft.rfft2(white) * amplitude, (height, width)))


def smooth_white_noise(white: Tensor, sigma_px: float) -> Tensor:
    """Return white noise (..., H, W) with the correlation exp(-d^2 / 2 sigma^2) and the variance that it had."""
    fy, fx = frequencies(white.shape[-2], white.shape[-1], white)
    # a Gaussian kernel of standard deviation sigma / sqrt(2) has a Gaussian autocorrelation of standard deviation sigma
    exponent = -((math.pi * sigma_px) ** 2)
    amplitude = torch.exp(exponent * (fy.square() + fx.square()))
    all_fx = torch.fft.fftfreq(white.shape[-1], dtype=white.dtype, device=white.device)[None]
    power = torch.exp(2 * exponent * (fy.square() + all_fx.square())).mean()
    return inverse_transform(torch.fft.rfft2(white) * (amplitude / power.sqrt()), (white.shape[-2], white.shape[-1]))


def native_noise(keys: Keys, image: Tensor, ratios: list[float]) -> Tensor:
    """Return white noise (B, C, H, W) of the standard deviation 1 per native pixel.

    Args:
        keys: One stream per chip.
        image: The image that it is for.
        ratios: Native pixel size of each band over that of the image. Above 1 the noise is repeated over the pixels of
            a native one, as the data were; below 1 a pixel averages several native ones and its noise is smaller.
    """
    height, width = image.shape[2:]
    planes = []
    for band, ratio in enumerate(ratios):
        if ratio <= 1:
            planes.append(keys.fold(band).normal((height, width)) * ratio)
            continue
        coarse = keys.fold(band).normal((math.ceil(height / ratio), math.ceil(width / ratio)))
        rows, cols = ((torch.arange(n) / ratio).long() for n in (height, width))
        planes.append(coarse[:, rows][:, :, cols])
    return torch.stack(planes, 1).to(image)


def covered_share(field: Tensor, share: float) -> Tensor:
    """Return the threshold (B, 1, 1) above which this share of the pixels of a field (B, H, W) lies."""
    flat = field.flatten(1)
    rank = min(max(round((1 - share) * flat.shape[1]), 1), flat.shape[1])
    return flat.kthvalue(rank, 1).values[:, None, None]


def seen_mean(image: Tensor, seen: Tensor) -> Tensor:
    """Return the mean (B, C, 1, 1) of the seen pixels of each chip and band; seen is (B, H, W), or per band (B, C, H, W)."""
    weight = (seen if seen.ndim == 4 else seen[:, None]).to(image.dtype)
    return (image * weight).sum((2, 3), keepdim=True) / weight.sum((2, 3), keepdim=True).clamp_min(1)


def fill_unseen(image: Tensor, seen: Tensor) -> Tensor:
    """Return the image with the mean of the seen pixels of each chip and band in the place of unseen ones."""
    return torch.where(seen[:, None], image, seen_mean(image, seen))


def filter_image(image: Tensor, seen: Tensor, transfer: TransferFunction) -> Tensor:
    """Return the image after a transfer function; edges are mirrored and unseen pixels hold the mean before it."""
    height, width = image.shape[2:]
    pad = min(PAD, height - 1, width - 1)
    wide = functional.pad(fill_unseen(image, seen), (pad, pad, pad, pad), mode="reflect")
    fy, fx = frequencies(wide.shape[2], wide.shape[3], image)
    out = inverse_transform(torch.fft.rfft2(wide) * transfer(fy, fx), (wide.shape[2], wide.shape[3]))
    return out[:, :, pad : pad + height, pad : pad + width]


def translate(image: Tensor, seen: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Return the image moved by fractions of a pixel, without the blur of bilinear interpolation.

    Args:
        image: (B, C, H, W).
        seen: (B, H, W).
        down: Pixels, broadcast to (B, C, 1, 1).
        right: The same to the right.
    """

    def turn(angle: Tensor) -> Tensor:
        return torch.complex(torch.cos(angle), torch.sin(angle))

    def phase(fy: Tensor, fx: Tensor) -> Tensor:
        return turn(-2 * math.pi * fy * down) * turn(-2 * math.pi * fx * right)

    return filter_image(image, seen, phase)


def warp(batch: Batch, down: Tensor, right: Tensor, unit: Unit, moves_label: bool = True) -> Batch:
    """Return the batch seen through a backward map: pixel p shows what was at p + (down, right).

    The image is interpolated bilinearly among seen pixels, in linear power where it is in decibels; label, seen and
    valid take the nearest pixel. What comes from outside is unseen.

    Args:
        batch: The batch.
        down: (B, H, W) displacement in pixels.
        right: The same to the right.
        unit: Unit of the image.
        moves_label: False leaves label and its validity where they were, as a registration error does.
    """
    height, width = batch.image.shape[2:]
    rows = torch.arange(height, device=down.device, dtype=down.dtype)[None, :, None] + down
    cols = torch.arange(width, device=down.device, dtype=down.dtype)[None, None] + right
    image = from_power(_bilinear(to_power(batch.image, unit), batch.seen, rows, cols), unit)
    return _moved(batch, rows, cols, image, unit, moves_label)


def _moved(batch: Batch, rows: Tensor, cols: Tensor, image: Tensor, unit: Unit, moves_label: bool) -> Batch:
    """Return the batch with a resampled image, and its masks from the pixels nearest to the source coordinates."""
    height, width = batch.image.shape[2:]
    near_row, near_col = rows.round().long(), cols.round().long()
    inside = (near_row >= 0) & (near_row < height) & (near_col >= 0) & (near_col < width)
    at = (near_row.clamp(0, height - 1) * width + near_col.clamp(0, width - 1)).flatten(1)

    def nearest(plane: Tensor) -> Tensor:
        return plane.flatten(1).gather(1, at).view_as(plane)

    seen = nearest(batch.seen) & inside
    image = torch.where(seen[:, None], image.to(batch.image.dtype), FILL[unit])
    image = torch.where((~seen & ~batch.seen)[:, None], batch.image, image)
    if not moves_label:
        return replace(batch, image=image, seen=seen, valid=batch.valid & seen)
    label = torch.where(inside, nearest(batch.label), batch.label)
    return replace(batch, image=image, label=label, seen=seen, valid=nearest(batch.valid) & inside)


def _bilinear(image: Tensor, seen: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    height, width = image.shape[2:]
    grid = torch.stack([2 * cols / max(width - 1, 1) - 1, 2 * rows / max(height - 1, 1) - 1], -1)
    weight = seen[:, None].to(image.dtype)
    both = torch.cat([image * weight, weight], 1)
    out = functional.grid_sample(both, grid.to(image.dtype), mode="bilinear", padding_mode="zeros", align_corners=True)
    return out[:, :-1] / out[:, -1:].clamp_min(1e-6)


def shift_batch(batch: Batch, down: Tensor, right: Tensor, unit: Unit, moves_label: bool) -> Batch:
    """Return the batch shifted by (B,) pixels down and right; reflectance by a phase in the frequency domain.

    Decibels are interpolated in linear power: the phase would make the power beside bright targets negative.
    """
    height, width = batch.image.shape[2:]
    if is_decibels(unit):
        still = torch.zeros(len(batch), height, width, dtype=batch.image.dtype, device=batch.image.device)
        return warp(batch, still - down[:, None, None], still - right[:, None, None], unit, moves_label)
    rows = torch.arange(height, device=down.device, dtype=down.dtype)[None, :, None] - down[:, None, None]
    cols = torch.arange(width, device=down.device, dtype=down.dtype)[None, None] - right[:, None, None]
    image = translate(batch.image, batch.seen, down.view(-1, 1, 1, 1), right.view(-1, 1, 1, 1))
    return _moved(batch, rows, cols, image, unit, moves_label)

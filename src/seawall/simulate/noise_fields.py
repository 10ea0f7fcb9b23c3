"""Random fields and lines of simulated scenes: power-law noise, river meanders, field parcels."""

from __future__ import annotations

import hashlib

import cv2
import numpy as np
import scipy.fft
from numpy.random import SFC64, Generator
from numpy.typing import NDArray

from seawall.arrays import BoolArray, ByteArray, DoubleArray, FloatArray


def blur(field: FloatArray, sigma: float) -> FloatArray:
    """Return the field convolved with a Gaussian; `sigma` is in pixels, at least 0.25."""
    return np.asarray(cv2.GaussianBlur(field, (0, 0), max(0.25, sigma)), np.float32)


def look_up(numbers: ByteArray, table: FloatArray) -> FloatArray:
    """Return `table[numbers]`, several times faster than NumPy's indexing."""
    return np.asarray(cv2.LUT(numbers, table), np.float32)


def distance_to_mask(mask: BoolArray) -> FloatArray:
    """Return the Euclidean distance of each pixel to the mask, in pixels."""
    return np.asarray(cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, 5), np.float32)


def resize(field: FloatArray | ByteArray, shape: tuple[int, int], how: int = cv2.INTER_LINEAR) -> FloatArray:
    """Return the field resampled to a shape (H, W)."""
    return np.asarray(cv2.resize(field, shape[::-1], interpolation=how), np.float32)


def named_generator(*names: str | float) -> Generator:
    """Return a generator that is seeded by these names alone."""
    text = "\x1f".join(map(str, names))
    seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "big")
    return Generator(SFC64(seed))


def power_law_noise(
    rng: Generator, shape: tuple[int, int], scale: float, slope: float = 3.0, step: int = 1
) -> tuple[FloatArray, FloatArray]:
    """Return two independent (H, W) fields of mean 0 and variance 1 with a power-law spectrum.

    Args:
        rng: Source of randomness.
        shape: (H, W).
        scale: Wavelength in pixels beyond which the spectrum is flat: the size of the largest shapes.
        slope: Exponent by which the power falls with the frequency; 2 is rough, 4 is smooth.
        step: Factor by which the grid of the computation is coarser; the fields are enlarged afterwards.
    """
    if step > 1:
        small = power_law_noise(rng, (-(-shape[0] // step) + 2, -(-shape[1] // step) + 2), scale / step, slope)
        one, two = (_enlarge(field, shape, step) for field in small)
        return one, two
    height, width = (scipy.fft.next_fast_len(n) for n in shape)
    fy, fx = np.fft.fftfreq(height).astype(np.float32), np.fft.fftfreq(width).astype(np.float32)
    # The fields are periodic: shapes as large as the scene would repeat at opposite edges.
    corner = 1 / min(scale, max(height, width))
    amplitude = (fy[:, None] ** 2 + fx[None] ** 2 + np.float32(corner**2)) ** np.float32(-slope / 4)
    amplitude[0, 0] = 0
    amplitude /= np.sqrt((amplitude**2).sum())
    white = rng.standard_normal((2, height, width), dtype=np.float32)
    spectrum = np.empty((height, width), np.complex64)
    np.multiply(white[0], amplitude, out=spectrum.real)
    np.multiply(white[1], amplitude, out=spectrum.imag)
    both = scipy.fft.ifft2(spectrum, overwrite_x=True)[: shape[0], : shape[1]]
    factor = np.float32(height * width)
    return np.asarray(both.real * factor, np.float32), np.asarray(both.imag * factor, np.float32)


def _enlarge(field: FloatArray, shape: tuple[int, int], step: int) -> FloatArray:
    big = cv2.resize(field, None, fx=step, fy=step, interpolation=cv2.INTER_CUBIC)
    return np.ascontiguousarray(big[: shape[0], : shape[1]], np.float32)


def smoothstep(field: FloatArray, low: float, high: float) -> FloatArray:
    """Return 0 below `low`, 1 above `high` and the cubic step 3t^2 - 2t^3 between."""
    t = np.clip((field - np.float32(low)) * np.float32(1 / (high - low)), 0, 1)
    return np.asarray(t * t * (np.float32(3) - np.float32(2) * t), np.float32)


def meander(
    rng: Generator, through: tuple[float, float], heading: float, length: float, wavelength: float, swing: float
) -> DoubleArray:
    """Return a river's center line as a sine-generated curve: (N, 2) points (x, y), one pixel apart.

    Args:
        rng: Source of randomness.
        through: Point (x, y) in the middle of the line.
        heading: General direction in radians.
        length: Length along the river.
        wavelength: Length along the river of one pair of bends.
        swing: Largest angle to the general direction in radians; at 1.9 bends nearly touch.

    Paper: Langbein and Leopold 1966, USGS Professional Paper 422-H, eq. 1.
    """
    n = max(8, int(length))
    knots = max(4, int(length / wavelength * 2) + 2)

    def interpolate(count: int, draw: DoubleArray) -> DoubleArray:
        return np.interp(np.arange(n), np.linspace(0, n, count), draw)

    # Length and swing of the bends, and the direction of the valley, vary along the river.
    phase = np.cumsum(2 * np.pi / wavelength * np.exp(interpolate(knots, rng.normal(0, 0.45, knots))))
    drift = interpolate(max(3, knots // 3), rng.normal(0, 0.35, max(3, knots // 3)))
    angle = (
        heading
        + drift
        + swing * interpolate(knots, rng.uniform(0.35, 1.0, knots)) * np.sin(phase + rng.uniform(0, 6.28))
    )
    points = np.stack([np.cumsum(np.cos(angle)), np.cumsum(np.sin(angle))], 1)
    return np.asarray(points - points[n // 2] + np.array(through))


def parcels(rng: Generator, shape: tuple[int, int], size: float, heading: float) -> NDArray[np.int32]:
    """Return a map (H, W) of field numbers: recursively halved rectangles, rotated to a heading.

    Args:
        rng: Source of randomness.
        shape: (H, W).
        size: Typical side of a field in pixels.
        heading: Direction of the field boundaries in radians.
    """
    side = int(np.hypot(*shape)) + 4
    flat = np.zeros((side, side), np.int32)
    todo, count = [(0, 0, side, side)], 0
    while todo:
        row, col, height, width = todo.pop()
        long = max(height, width)
        if long < size * 1.1 or (long < size * 2.6 and rng.random() < 0.35):
            flat[row : row + height, col : col + width] = count
            count += 1
            continue
        at = int(long * rng.uniform(0.35, 0.65))
        if height >= width:
            todo += [(row, col, at, width), (row + at, col, height - at, width)]
        else:
            todo += [(row, col, height, at), (row, col + at, height, width - at)]
    turn = np.asarray(cv2.getRotationMatrix2D((side / 2, side / 2), float(np.degrees(heading)), 1.0), np.float64)
    turn[:, 2] -= np.array([(side - shape[1]) / 2, (side - shape[0]) / 2])
    # warpAffine does not support int32; there are fewer than 2^24 fields, so float32 holds their numbers.
    turned = cv2.warpAffine(flat.astype(np.float32), turn, shape[::-1], flags=cv2.INTER_NEAREST)
    return turned.astype(np.int32)

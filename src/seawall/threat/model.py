"""The threat as a value: norm, budget in data units, bounds, bands, region."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from seawall.errors import UsageError
from seawall.records import ThreatFacts
from seawall.rng import Keys
from seawall.threat.region import Region
from seawall.types import Units, units_of

PerBand = float | tuple[float, ...]

DEFAULT_LOW: dict[str, float | None] = {"reflectance": 0.0, "sigma0_db": None, "gamma0_db": None, "stretched": 0.0}
DEFAULT_HIGH: dict[str, float | None] = {"reflectance": None, "sigma0_db": None, "gamma0_db": None, "stretched": 1.0}
"""Default bounds of a parsed threat, per unit; reflectance above 1 exists, over snow and glint."""

UNIT_NAMES: dict[str, str] = {
    "reflectance": "reflectance",
    "sigma0_db": "dB",
    "gamma0_db": "dB",
    "stretched": "stretched",
}
"""Names of the units in the text of a threat."""


def default_bounds(unit: Units) -> tuple[PerBand | None, PerBand | None]:
    """Return the default low and high of a parsed threat; one per band where bands differ in their unit.

    Example:
        >>> default_bounds("stretched"), default_bounds(("sigma0_db", "reflectance"))
        ((0.0, 1.0), ((-inf, 0.0), (inf, inf)))
    """
    if not isinstance(unit, tuple):
        return DEFAULT_LOW[unit], DEFAULT_HIGH[unit]
    lows, highs = [DEFAULT_LOW[one] for one in unit], [DEFAULT_HIGH[one] for one in unit]
    return (
        tuple(-math.inf if low is None else low for low in lows),
        tuple(math.inf if high is None else high for high in highs),
    )


@dataclass(frozen=True)
class ThreatModel:
    """What the adversary may do to an image, in data units; unseen pixels are frozen always.

    Multiplicative speckle of Sentinel-1 is linf in dB. Additive haze is linf along a spectrum, upwards.

    Args:
        norm: "linf" or "l2"; l2 is over a whole image.
        eps: Budget in data units, one number or one per band. Per-band l2 is an ellipsoid: |offset / eps| <= 1.
        unit: Unit of eps; it must be the model's in every band that may be touched. One per band for a threat of bands in
            several units, whose eps has one number per band.
        low: Smallest allowed value, one number or per band; widened to hold the clean image, which is never clipped.
        high: Largest allowed value, likewise.
        bands: Indices of the bands that may be touched; None for all of them.
        region: Pixels that may be touched; None for every seen one.
        sign: "up" only brightens, "down" only darkens.
        spectrum: Relative strength per band; the offset of a pixel is a multiple of it. Its largest entry counts as 1.
        factors: Multiple of eps of each image of a batch, where training draws budgets image by image; None for eps itself.
        names: Band names, for the text form only.

    Raises:
        UsageError: A setting contradicts itself or is out of range.

    Example:
        >>> threat = ThreatModel("linf", 0.01)
        >>> x = torch.zeros(1, 1, 1, 2)
        >>> threat.project(x + 1, x, torch.tensor([[[True, False]]]))
        tensor([[[[0.0100, 0.0000]]]])
    """

    norm: Literal["linf", "l2"]
    eps: PerBand
    unit: Units = "reflectance"
    low: PerBand | None = None
    high: PerBand | None = None
    bands: tuple[int, ...] | None = None
    region: Region | None = None
    sign: Literal["both", "up", "down"] = "both"
    spectrum: tuple[float, ...] | None = None
    factors: tuple[float, ...] | None = None
    names: tuple[str, ...] = field(default=(), compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.norm not in ("linf", "l2"):
            raise UsageError(f"threat: expected norm linf or l2, got {self.norm!r}; write one of them")
        if self.sign not in ("both", "up", "down"):
            raise UsageError(f"threat: expected sign both, up or down, got {self.sign!r}; write one of them")
        if not all(math.isfinite(eps) and eps >= 0 for eps in _as_tuple(self.eps)):
            raise UsageError(f"threat: expected a finite eps >= 0, got {self.eps}; 0 means no attack at all")
        if self.bands is not None and (not self.bands or min(self.bands) < 0):
            raise UsageError(
                f"threat: expected indices of bands that may be touched, got {self.bands}; name at least one"
            )
        if isinstance(self.unit, tuple) and (self.norm != "linf" or len(_as_tuple(self.eps)) != len(self.unit)):
            raise UsageError(
                f"threat: expected linf and an eps per band for bands in several units, got {self.norm} {self.eps}; a length over "
                "several units has no meaning"
            )
        if self.spectrum is not None and (isinstance(self.eps, tuple) or not any(self.spectrum)):
            raise UsageError(
                f"threat: expected one eps and a spectrum that is not all zero, got {self.eps} and {self.spectrum}; "
                "the spectrum already gives the share of each band"
            )
        if not all(math.isfinite(factor) and factor >= 0 for factor in self.factors or ()):
            raise UsageError(f"threat: expected finite factors >= 0, got {self.factors}; 0 means no attack on an image")

    @property
    def radius(self) -> float:
        """Largest distance that an image of the set can have; 0 means that only the clean image is in it."""
        return max(_as_tuple(self.eps)) * (1.0 if self.factors is None else max(self.factors, default=0.0))

    def scaled(self, factor: float) -> ThreatModel:
        """Return the same threat with `factor` times the budget."""
        eps = tuple(e * factor for e in self.eps) if isinstance(self.eps, tuple) else self.eps * factor
        return replace(self, eps=eps)

    def around(self, x: Tensor, seen: Tensor) -> Ball:
        """Return the set of images around `x` (B, C, H, W), bounds computed once.

        Args:
            x: Clean images.
            seen: (B, H, W) bool, or per band (B, 1 or C, H, W), such as `Batch.image_seen`: no other pixel may be touched.

        Raises:
            UsageError: A per-band setting has another number of bands than the image.
        """
        x = x.detach()
        eps = self._column(self.eps, x, "eps") * self._factor_per_image(x)
        low = torch.minimum(self._column(-math.inf if self.low is None else self.low, x, "low"), x)
        high = torch.maximum(self._column(math.inf if self.high is None else self.high, x, "high"), x)
        low = x if self.sign == "up" else low
        high = x if self.sign == "down" else high
        free = self.free(x, seen) & (eps > 0)
        low, high = torch.where(free, low, x), torch.where(free, high, x)
        if self.spectrum is not None:
            return self._haze(x, low, high, eps)
        if self.norm == "linf":
            low, high = torch.maximum(low, x - eps), torch.minimum(high, x + eps)
        return Ball(x, low, high, eps, self.norm)

    def free(self, x: Tensor, seen: Tensor) -> Tensor:
        """Return where the adversary may change values: bool (B, C, H, W)."""
        there = seen if seen.ndim == 4 else seen[:, None]
        if self.region is not None:
            there = there & self.region(x, there.any(1))[:, None]
        return there & self._allowed(x)

    def project(self, adv: Tensor, x: Tensor, seen: Tensor) -> Tensor:
        """Return `adv` moved into the set around `x`: idempotent, and the identity inside."""
        return self.around(x, seen).project(adv)

    def ascend(self, grad: Tensor) -> Tensor:
        """Return the steepest ascent of length one budget for a gradient: `x + step * ascend` uses a share of eps.

        Gradients of values that may not be touched should be zero under l2; `around(x, seen).ascend` sees to it.
        """
        everywhere = torch.ones(grad.shape[0], *grad.shape[2:], dtype=torch.bool, device=grad.device)
        return replace(self, region=None).around(torch.zeros_like(grad), everywhere).ascend(grad)

    def start(self, x: Tensor, seen: Tensor, keys: Keys) -> Tensor:
        """Return random images of the set, each chip from its own stream."""
        return self.around(x, seen).start(keys)

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the distance (B,) in data units that `radius` bounds; bands with a smaller eps count for more."""
        offset = (a - b).detach()
        if isinstance(self.eps, tuple):
            eps = self._column(self.eps, a, "eps") * self._factor_per_image(a)
            share = torch.where(eps > 0, offset / eps.clamp_min(1e-30), torch.where(offset == 0, 0.0, math.inf))
            offset = share * self.radius
        flat = offset.flatten(1)
        length: Tensor = flat.abs().amax(1) if self.norm == "linf" else torch.linalg.vector_norm(flat, dim=1)
        return length

    def _haze(self, x: Tensor, low: Tensor, high: Tensor, eps: Tensor) -> Ball:
        strengths = self.spectrum or ()
        peak = max(map(abs, strengths))
        spectrum = self._column(tuple(s / peak for s in strengths), x, "spectrum")
        if self.bands is not None:
            spectrum = spectrum * self._allowed(x)
        # each band allows an interval of amounts; the pixel gets their intersection
        there = spectrum != 0
        safe = torch.where(there, spectrum, 1.0)
        ends = (low - x) / safe, (high - x) / safe
        least = torch.where(there, torch.minimum(*ends), -math.inf).amax(1, keepdim=True)
        most = torch.where(there, torch.maximum(*ends), math.inf).amin(1, keepdim=True)
        amount = eps[:, :1]
        if self.norm == "linf":
            least, most = torch.maximum(least, -amount), torch.minimum(most, amount)
        return Ball(x, least, most, amount, self.norm, spectrum)

    def _factor_per_image(self, x: Tensor) -> Tensor:
        """Return the multiple of eps: (B, 1, 1, 1), or (1, 1, 1, 1) where all images have the same budget."""
        if self.factors is not None and len(self.factors) != len(x):
            raise UsageError(f"threat: expected {len(x)} factors, got {len(self.factors)}; give one per image")
        return per_image(torch.tensor(self.factors or (1.0,), dtype=x.dtype, device=x.device))

    def _allowed(self, x: Tensor) -> Tensor:
        allowed = torch.ones(x.shape[1], dtype=torch.bool, device=x.device)
        if self.bands is not None:
            if max(self.bands) >= x.shape[1]:
                raise UsageError(f"threat: expected bands below {x.shape[1]}, got {self.bands}; use the model's bands")
            allowed = torch.zeros_like(allowed)
            allowed[list(self.bands)] = True
        return allowed[None, :, None, None]

    def _column(self, value: PerBand, x: Tensor, what: str) -> Tensor:
        if isinstance(value, tuple) and len(value) != x.shape[1]:
            raise UsageError(f"threat: expected {x.shape[1]} values of {what}, got {len(value)}; give one per band")
        return (
            torch.tensor(_as_tuple(value), dtype=x.dtype, device=x.device).view(1, -1, 1, 1).expand(1, x.shape[1], 1, 1)
        )

    @property
    def facts(self) -> ThreatFacts:
        """The threat as plain values, for records."""
        bands = tuple(self.names[b] if self.names else f"#{b}" for b in self.bands or ())
        region = "" if self.region is None or str(self.region) == "everywhere" else str(self.region)
        units = " + ".join(UNIT_NAMES[unit] for unit in dict.fromkeys(units_of(self.unit, 1)))
        return ThreatFacts(self.norm, _as_tuple(self.eps), units, bands, region, " ".join(self._limits()))

    def _limits(self) -> list[str]:
        words = [] if self.sign == "both" else [f"sign={self.sign}"]
        if self.spectrum is not None:
            words.append(f"spectrum={_format_numbers(self.spectrum)}")
        if self.factors is not None:
            words.append(f"factors={_format_numbers(self.factors)}")
        low, high = default_bounds(self.unit)
        for name, bound, usual in (("low", self.low, low), ("high", self.high, high)):
            if bound != usual:
                words.append(f"{name}={'none' if bound is None else _format_numbers(bound)}")
        return words

    def __str__(self) -> str:
        words = [self._budget()]
        if self.facts.bands:
            words.append("bands=" + ",".join(self.facts.bands))
        if self.region is not None:
            words.append(f"region={self.region}")
        return " ".join([*words, *self._limits()])

    def _budget(self) -> str:
        """Return norm, eps and unit as text, joined by " + " where there are several units."""
        if not isinstance(self.unit, tuple):
            eps = self.eps
            if (
                isinstance(eps, tuple)
                and self.bands is not None
                and not any(e for band, e in enumerate(eps) if band not in self.bands)
            ):
                eps = tuple(eps[band] for band in self.bands)
            return f"{self.norm} {_format_eps(eps, self.unit)} {UNIT_NAMES[self.unit]}"
        parts = []
        for unit in dict.fromkeys(self.unit):
            own = tuple(e for e, u in zip(_as_tuple(self.eps), self.unit, strict=True) if u == unit)
            same = own[0] if len(set(own)) == 1 else own
            parts.append(f"{self.norm} {_format_eps(same, unit)} {UNIT_NAMES[unit]}")
        return " + ".join(parts)


def _as_tuple(value: PerBand) -> tuple[float, ...]:
    return value if isinstance(value, tuple) else (value,)


def _format_numbers(value: PerBand) -> str:
    return ",".join(f"{v:.12g}" if float(f"{v:.12g}") == v else repr(float(v)) for v in _as_tuple(value))


def _format_eps(eps: PerBand, unit: str) -> str:
    percents = tuple(float(f"{e * 100:.12g}") for e in _as_tuple(eps))
    if unit in ("reflectance", "stretched") and all(
        p / 100 == e for p, e in zip(percents, _as_tuple(eps), strict=True)
    ):
        return ",".join(f"{p:.12g}%" for p in percents)
    return _format_numbers(eps)


ROUNDING_MARGIN = 2e-6  # an l2 projection lands this share inside, so that rounding cannot put it outside again


@dataclass(frozen=True)
class Ball:
    """The images that an adversary may choose instead of `x`.

    Args:
        x: (B, C, H, W) clean images.
        low: Smallest value of each pixel; equals `x` where it may not be touched. With a spectrum it bounds the
            amount (B, 1, H, W) that is added along it.
        high: Largest value, likewise.
        eps: (1, C, 1, 1) budget per band, or (B, C, 1, 1) per image; with a spectrum one band.
        norm: "linf" or "l2".
        spectrum: (1, C, 1, 1) direction of additive haze, largest entry 1, or None.
    """

    x: Tensor
    low: Tensor
    high: Tensor
    eps: Tensor
    norm: str
    spectrum: Tensor | None = None

    def project(self, adv: Tensor) -> Tensor:
        """Return the projection of `adv` onto the set: idempotent, and the identity inside."""
        if self.spectrum is None:
            boxed = torch.clamp(adv, self.low, self.high)
            return boxed if self.norm == "linf" else self._shrink(boxed)
        along = (adv - self.x).mul(self.spectrum).sum(1, keepdim=True) / self.spectrum.square().sum().clamp_min(1e-30)
        amount = torch.clamp(along, self.low, self.high)
        if self.norm == "l2":
            amount = amount * self._shrinkage(amount)
        return self.x + amount * self.spectrum

    def ascend(self, grad: Tensor) -> Tensor:
        """Return the steepest ascent of length one budget, so that a step is a share of eps."""
        along = grad if self.spectrum is None else (grad * self.spectrum).sum(1, keepdim=True)
        move = along.sign() * self.eps if self.norm == "linf" else self._steepest(along)
        return move if self.spectrum is None else move * self.spectrum

    def start(self, keys: Keys) -> Tensor:
        """Return random images of the set, uniform in linf's box and in l2's ball before the bounds clip it."""
        shape = self.low.shape[1:]
        if self.norm == "linf":
            value = self.low + keys.uniform(shape).to(self.low) * (self.high - self.low)
            inside = torch.minimum(value, self.high)
            return inside if self.spectrum is None else self.x + inside * self.spectrum
        free = self._free()
        noise = torch.where(free, keys.normal(shape).to(self.low), 0.0)
        size = free.flatten(1).sum(1).clamp_min(1).to(self.low)
        radius = keys.fold("radius").uniform((1,))[:, 0].to(self.low) ** (1.0 / size)
        offset = noise * per_image(radius / _l2_norm(noise).clamp_min(1e-12)) * self._l2_radii()
        return self.project(self.x + (offset if self.spectrum is None else offset * self.spectrum))

    def select(self, indices: Tensor) -> Ball:
        """Return the set around the chosen images."""
        eps = self.eps if len(self.eps) == 1 else self.eps[indices]
        return replace(self, x=self.x[indices], low=self.low[indices], high=self.high[indices], eps=eps)

    def within(self, mask: Tensor) -> Ball:
        """Return the part of the set that touches only `mask` (B, H, W)."""
        rest = self.x if self.spectrum is None else torch.zeros_like(self.low)
        there = mask[:, None]
        return replace(self, low=torch.where(there, self.low, rest), high=torch.where(there, self.high, rest))

    def _free(self) -> Tensor:
        return self.high > self.low

    def _l2_radii(self) -> Tensor:
        # along a spectrum the l2 norm of the noise is the amount's times the spectrum's
        return self.eps if self.spectrum is None else self.eps / self.spectrum.square().sum().sqrt().clamp_min(1e-15)

    def _shrink(self, boxed: Tensor) -> Tensor:
        # the box contains x, so a convex combination with x stays in the box
        offset = boxed - self.x
        share = self._shrinkage(offset)
        return torch.where(share < 1, self.x + offset * share, boxed)

    def _shrinkage(self, offset: Tensor) -> Tensor:
        radii = self._l2_radii()
        length = _l2_norm(torch.where(radii > 0, offset / radii.clamp_min(1e-30), 0.0))
        return per_image(torch.where(length > 1, (1 - ROUNDING_MARGIN) / length, 1.0))

    def _steepest(self, along: Tensor) -> Tensor:
        radii = self._l2_radii()
        weighted = torch.where(self._free(), along, 0.0) * radii
        largest = weighted.flatten(1).abs().amax(1).clamp_min(torch.finfo(weighted.dtype).tiny)
        scaled = weighted / per_image(largest)  # squares of tiny gradients would underflow
        return scaled * radii / per_image(_l2_norm(scaled).clamp_min(1e-12))


def _l2_norm(offset: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(offset.flatten(1), dim=1)
    return length


def per_image(values: Tensor) -> Tensor:
    """Return one value per image (B,) as (B, 1, 1, 1)."""
    return values[:, None, None, None]

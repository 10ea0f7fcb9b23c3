"""Augmentation of the regions that a network looks at: occlusion, noise and warps where the input gradient is large."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, cast, final, get_args

import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from seawall.chip_context import ChipContext
from seawall.corruptions.geometry import ElasticWarp
from seawall.corruptions.per_source import on_each_source
from seawall.corruptions.severity import with_image
from seawall.corruptions.spatial import seen_mean
from seawall.errors import UsageError
from seawall.label_noise.teacher import saliency_teacher
from seawall.losses.segmentation import CrossEntropyLoss
from seawall.registry import register
from seawall.rng import Keys
from seawall.training.objectives.augmentation import ChangedImages
from seawall.types import Batch, Corruption, ModelSpec, SegmentationModel, single_unit

RegionChange = Literal["occlusion", "noise", "warp"]
REGION_CHANGES: tuple[RegionChange, ...] = get_args(RegionChange)


@register("objective", "gradient-sensitive-augmentation", smoke={"warp_px": 0.5, "noise": 0.2})
@final
@dataclass(frozen=True)
class GradientSensitiveAugmentation(ChangedImages):
    """Each chip is changed where the loss depends most on its pixels, or not at all, with equal probability.

    The region is the share of seen pixels with the largest input gradient, summed over the bands as absolute values and
    smoothed. Occlusion puts the mean of the chip there and takes the labels out; noise adds to the image; a warp moves
    image, label, seen and valid. Other pixels stay bit for bit. Costs one forward and one backward pass more.

    This is what a summary of arXiv:2406.01425 describes, not what that paper does: its method has no gradients
    ("sensitivity-augmentation").

    Args:
        changes: Which of occlusion, noise and warp a chip may draw.
        share: Share of the seen pixels that are changed.
        smooth_px: Standard deviation of the smoothing.
        noise: Standard deviation of the noise, in those of the bands over the chip.
        warp_px: Root mean square displacement of the warp.
    """

    changes: tuple[RegionChange, ...] = REGION_CHANGES
    share: float = 0.2
    smooth_px: float = 2.0
    noise: float = 1.0
    warp_px: float = 2.0
    name: ClassVar[str] = "gradient-sensitive-augmentation"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.changes or (wrong := [one for one in self.changes if one not in REGION_CHANGES]):
            raise UsageError(
                f"{self.name}.changes: expected some of {', '.join(REGION_CHANGES)}, got {wrong[0] if self.changes else 'none'}; name one"
            )
        if not (0 < self.share < 1 and 0 <= self.smooth_px <= 64 and 0 < self.noise <= 10 and 0 < self.warp_px <= 64):
            raise UsageError(
                f"{self.name}: expected share in (0, 1), smooth_px in [0, 64], noise in (0, 10], warp_px in (0, 64], got "
                f"{self.share}, {self.smooth_px}, {self.noise}, {self.warp_px}; such as 0.2, 2, 1, 2"
            )

    def changed(self, model: SegmentationModel, batch: Batch, keys: Keys) -> Batch:
        """Return the batch with each chip changed in its most sensitive region, or not."""
        gradient = saliency_teacher(cast(nn.Module, model), CrossEntropyLoss())(batch)
        region = sensitive_region(gradient, batch.seen, self.share, self.smooth_px)
        choice = (keys.fold("choice").uniform((1, 1)) * (len(self.changes) + 1)).long().to(batch.image.device)
        for index, name in enumerate(self.changes):
            batch = self._change(name, batch, region & (choice == index), model.spec, keys.fold(name))
        return batch

    def _change(self, name: RegionChange, batch: Batch, region: Tensor, spec: ModelSpec, keys: Keys) -> Batch:
        """Return the batch with one kind of change in a region (B, H, W)."""
        if not bool(region.any()):
            return batch
        image, at = batch.image, region[:, None]
        if name == "occlusion":
            gone = replace(batch, valid=batch.valid & ~region)
            return with_image(gone, torch.where(at, seen_mean(image, batch.image_seen), image))
        if name == "noise":
            spread = seen_mean((image - seen_mean(image, batch.image_seen)).square(), batch.image_seen).sqrt()
            draw = keys.normal(image.shape[1:]).to(image)
            return with_image(batch, torch.where(at, image + self.noise * spread * draw, image))
        warp = on_each_source(self._warp, ChipContext.of_model(spec), together=True)
        moved = warp(batch, 1.0, keys)
        old = batch if moved.seen_bands is None else batch.bandwise()
        planes = ((name, at if plane.ndim == 4 else region, plane) for name, plane in old.planes.items())
        return batch.with_planes({name: torch.where(there, moved.planes[name], plane) for name, there, plane in planes})

    def _warp(self, chips: ChipContext) -> Corruption:
        unit = single_unit(chips.unit, self.name)
        return ElasticWarp(unit, self.warp_px, smoothness_px=max(2.0, 4 * self.warp_px))


def sensitive_region(gradient: Tensor, seen: Tensor, share: float, smooth_px: float) -> Tensor:
    """Return the seen pixels (B, H, W) with the largest smoothed gradient: exactly their share, rounded, in each chip.

    Args:
        gradient: (B, H, W), at least 0.
        seen: (B, H, W) bool.
        share: Share of the seen pixels.
        smooth_px: Standard deviation of the Gaussian.
    """
    region = torch.zeros_like(seen)
    for chip, plane in enumerate(gradient.cpu().double()):
        smooth = torch.from_numpy(gaussian_filter(plane.numpy(), smooth_px)).to(seen.device)
        count = round(share * int(seen[chip].sum()))
        smooth[~seen[chip]] = -1.0
        region[chip].view(-1)[smooth.flatten().topk(count).indices] = True
    return region

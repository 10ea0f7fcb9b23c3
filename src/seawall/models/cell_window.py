"""The radius of the receptive field of a network, from a forward pass of windows instead of numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from seawall.errors import ModelError
from seawall.modules import eval_mode


@dataclass(frozen=True)
class CellWindow:
    """The input pixels that a cell of a feature map depends on, along one axis.

    Cell i covers the pixels from stride * i to stride * (i + 1) - 1, and depends on these, on `before` pixels before them
    and on `after` pixels behind them. PyTorch lets an object of this class pass through a network in place of an image,
    because it has `__torch_function__`; each layer then computes its window from that of its input. So the radius
    follows from the forward pass itself, and a layer whose rule is not in `RULES` is an error, not a wrong radius.

    Args:
        stride: Pixels per cell.
        before: Pixels before the cell; infinite where the layer looks at the whole image.
        after: Pixels behind the cell.
    """

    stride: int = 1
    before: float = 0
    after: float = 0

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., object],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> CellWindow:
        """Return the window after a function of PyTorch.

        Raises:
            ModelError: There is no rule for the function.
        """
        if func in RULES:
            return RULES[func](*args, **(kwargs or {}))
        name = getattr(func, "__name__", str(func))
        raise ModelError(
            f"receptive field: expected layers of a known reach, got {name}; add its rule to seawall.models.cell_window"
        )

    def slid(self, kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1) -> CellWindow:
        """Return the window after a kernel that slides over the map, as that of a convolution or a pooling.

        Example:
            >>> CellWindow().slid(7, stride=2, padding=3)
            CellWindow(stride=2, before=3, after=2)
        """
        behind = dilation * (kernel - 1) - padding + 1 - stride
        return CellWindow(self.stride * stride, self.before + self.stride * padding, self.after + self.stride * behind)

    def upsampled(self, factor: int, sources: Callable[[int], tuple[int, int]]) -> CellWindow:
        """Return the window of the cells after an upsampling.

        Args:
            factor: Cells per former cell.
            sources: From a cell to the first and last former cell that it reads; shifts by `factor` shift them by one.

        Raises:
            ModelError: The cells would be smaller than a pixel.
        """
        stride, rest = divmod(self.stride, factor)
        if rest:
            raise ModelError(
                f"receptive field: expected a map of stride {factor} or a multiple to be upsampled {factor} times, got {self.stride}; upsample less"
            )
        reads = [(cell, *sources(cell)) for cell in range(factor)]
        before = max(stride * cell - self.stride * first for cell, first, _ in reads)
        after = max(self.stride * (last + 1) - stride * (cell + 1) for cell, _, last in reads)
        return CellWindow(stride, self.before + before, self.after + after)

    def joined(self, other: object) -> CellWindow:
        """Return the window of what reads two maps; a number or a tensor of weights reads nothing.

        Raises:
            ModelError: The maps have cells of different sizes.
        """
        if not isinstance(other, CellWindow):
            return self
        if other.stride != self.stride:
            raise ModelError(
                f"receptive field: expected maps of one stride, got {self.stride} and {other.stride}; resize one of them"
            )
        return CellWindow(self.stride, max(self.before, other.before), max(self.after, other.after))

    def permute(self, *order: int) -> CellWindow:
        """Return the same window: the order of axes does not count."""
        return self

    def dim(self) -> int:
        """Return the number of axes of the map that it stands for."""
        return 4

    __add__ = __radd__ = __mul__ = __rmul__ = __truediv__ = joined


def receptive_radius(network: nn.Module) -> int | None:
    """Return the largest distance in pixels at which an input pixel can change a logit; None without a bound.

    Args:
        network: From images to logits of the same size, of the functions in `RULES`; called in eval mode.

    Raises:
        ModelError: The network has another function, or its logits are not of the size of the image.
    """
    with eval_mode(network):
        window = network(CellWindow())
    if not isinstance(window, CellWindow) or window.stride != 1:
        raise ModelError(f"receptive field: expected logits of the size of the image, got {window}; upsample them")
    radius = max(window.before, window.after)
    return None if math.isinf(radius) else int(radius)


def _square(size: int | Sequence[int]) -> int:
    """Return the one number of a kernel size, stride, padding or dilation, which may be one per axis.

    Raises:
        ModelError: The axes differ.
    """
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        raise ModelError(f"receptive field: expected square kernels, got {tuple(sides)}; state `reach` by hand")
    return sides.pop()


Sides = int | Sequence[int]


def _convolve(
    x: CellWindow, weight: Tensor, bias: Tensor | None, stride: Sides, padding: Sides, dilation: Sides, groups: int
) -> CellWindow:
    return x.slid(_square(weight.shape[-2:]), _square(stride), _square(padding), _square(dilation))


def _pool_window(
    x: CellWindow, kernel_size: Sides, stride: Sides | None = None, padding: Sides = 0, dilation: Sides = 1, **_: bool
) -> CellWindow:
    return x.slid(_square(kernel_size), _square(stride or kernel_size), _square(padding), _square(dilation))


def _pad_window(x: CellWindow, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> CellWindow:
    """Return the window after cells were added on all sides, of zeros or of the cell at the edge.

    A repeated cell counts as the one that would be there, so a layer that reads it has to read the cell at the edge too.
    """
    if mode not in ("constant", "replicate"):
        raise ModelError(
            f"receptive field: expected padding by zeros or by the cell at the edge, got {mode}; state `reach` by hand"
        )
    before = x.stride * _square((pad[0], pad[2]))
    return CellWindow(x.stride, x.before + before, x.after - before)


def _convolve_transposed(
    x: CellWindow,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sides,
    padding: Sides,
    output_padding: Sides,
    groups: int,
    dilation: Sides,
) -> CellWindow:
    factor, kernel, cut = _square(stride), _square(weight.shape[-2:]), _square(padding)
    return x.upsampled(factor, lambda cell: (-((kernel - 1 - cell - cut) // factor), (cell + cut) // factor))


def _interpolate(x: CellWindow, size: None, scale_factor: float, mode: str, *_: object, **__: object) -> CellWindow:
    factor = int(scale_factor)

    def sources(cell: int) -> tuple[int, int]:
        if mode == "nearest":
            return cell // factor, cell // factor
        first = math.floor((cell + 0.5) / factor - 0.5)
        return first, first + 1

    return x.upsampled(factor, sources)


def _concatenate(maps: Sequence[CellWindow], dim: int = 0) -> CellWindow:
    joined = maps[0]
    for other in maps[1:]:
        joined = joined.joined(other)
    return joined


def _unchanged(x: CellWindow, *_: object, **__: object) -> CellWindow:
    return x


def _unbounded(x: CellWindow, *_: object, **__: object) -> CellWindow:
    return CellWindow(x.stride, math.inf, math.inf)


RULES: Mapping[object, Callable[..., CellWindow]] = {
    functional.conv2d: _convolve,
    functional.conv_transpose2d: _convolve_transposed,
    functional.max_pool2d: _pool_window,
    functional.pad: _pad_window,
    functional.interpolate: _interpolate,
    functional.group_norm: _unbounded,
    torch.cat: _concatenate,
    **{
        cast(object, pointwise): _unchanged
        for pointwise in (
            functional.batch_norm,
            functional.layer_norm,
            functional.relu,
            functional.relu6,
            functional.hardtanh,
            functional.dropout,
            functional.dropout2d,
            functional.local_response_norm,
            torch.tanh,
        )
    },
}
"""The window after each function of PyTorch that the networks use."""

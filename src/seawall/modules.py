"""Helpers for any torch module: its device, contexts for a device and for eval mode, forward passes that check or keep a layer's maps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TypeVar, cast
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from seawall.errors import DataError, ModelError, UsageError, did_you_mean
from seawall.types import Batch, SegmentationModel

Found = TypeVar("Found")
Moved = TypeVar("Moved", bound=Batch | nn.Module)


def device_of(model: object) -> torch.device | None:
    """Return the device of a model's first parameter or buffer; None for a model without any."""
    if not isinstance(model, nn.Module):
        return None
    first = next(iter([*model.parameters(), *model.buffers()]), None)
    return None if first is None else first.device


def to_device_of(model: object, moved: Moved) -> Moved:
    """Return a batch, or another module, on the model's device; unchanged where the model has none."""
    device = device_of(model)
    if device is None or (isinstance(moved, Batch) and device == moved.image.device):
        return moved
    return cast(Moved, moved.to(device))


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode; afterwards restore the mode of each of its modules."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """Return the batch norms of a model that keep running statistics."""
    return [part for part in model.modules() if isinstance(part, _BatchNorm) and part.track_running_stats]


@contextmanager
def kept_statistics(model: nn.Module) -> Iterator[None]:
    """Let forward passes in training mode leave the running statistics of batch norms as they are.

    Their buffers are not written to: a backward pass may still need them.
    """
    norms = [(norm, norm.momentum, norm.num_batches_tracked) for norm in batch_norms(model)]
    counts = [None if count is None else count.clone() for _, _, count in norms]
    try:
        for norm, _, _ in norms:
            norm.momentum = 0.0
        yield
    finally:
        for (norm, momentum, seen), count in zip(norms, counts, strict=True):
            norm.momentum = momentum
            if seen is not None and count is not None:
                seen.copy_(count)


@contextmanager
def running_statistics(model: nn.Module) -> Iterator[None]:
    """Let batch norms normalize by their running statistics, as in evaluation, and leave those as they are; gradients pass."""
    with ExitStack() as held:
        for norm in batch_norms(model):
            held.enter_context(eval_mode(norm))
        yield


@contextmanager
def on_device(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Move a model to a device, and back afterwards."""
    former = device_of(model) or device
    try:
        model.to(device)
        yield
    finally:
        model.to(former)


def checked_forward(model: SegmentationModel | nn.Module, image: Tensor) -> Tensor:
    """Return a model's logits, and check that the model does not write into its input; see `checked_call`."""
    logits: Tensor = checked_call(type(model).__name__, model, image)
    return logits


def checked_call(name: str, call: Callable[[Tensor], Found], image: Tensor) -> Found:
    """Return what a network gives, and check that it does not write into its input.

    An in-place write would change the image that is measured, attacked or blended next.

    Args:
        name: What the error calls the network.
        call: The network, in eval mode, or a function that calls it.
        image: (B, C, H, W) on the model's device; the network gets a copy.

    Raises:
        ModelError: The network has written into its input.
    """
    given = image.clone()
    found = call(given)
    if not torch.equal(given.nan_to_num(), image.nan_to_num()):
        raise ModelError(
            f"{name}: expected a network that leaves its input as it is, got one that writes into it; "
            "let its forward begin with image = image.clone()"
        )
    return found


def named_layer(model: nn.Module, name: str) -> nn.Module:
    """Return a module of a model by its name.

    Raises:
        UsageError: There is no such module.
    """
    modules: dict[str, nn.Module] = dict(model.named_modules())
    if name not in modules:
        raise UsageError(f"layer: unknown name {name!r}; {did_you_mean(name, filter(None, modules), most=8)}")
    return modules[name]


def feature_layers(model: nn.Module, image: Tensor) -> list[tuple[nn.Module, int]]:
    """Return the modules without children that give maps (B, D, h, w) once, in the order of calls, with h * w.

    The last one of a segmentation network gives its logits.

    Args:
        model: Called in eval mode; its modes are restored.
        image: (B, C, H, W); the first image is used.
    """
    called: list[tuple[nn.Module, int]] = []

    def note(module: nn.Module, given: tuple[object, ...], out: object) -> None:
        if isinstance(out, Tensor) and out.ndim == 4:
            called.append((module, out.shape[2] * out.shape[3]))

    leaves = [module for module in model.modules() if not list(module.children())]
    hooks = [module.register_forward_hook(note) for module in leaves]
    try:
        with eval_mode(model), torch.no_grad():
            model(image[:1].to(device_of(model)))
    finally:
        for hook in hooks:
            hook.remove()
    modules = [module for module, _ in called]
    return [(module, pixels) for module, pixels in called if modules.count(module) == 1]


_HEADS: WeakKeyDictionary[nn.Module, ref[nn.Module]] = WeakKeyDictionary()
"""The head of each model that was looked up."""


def head_layer(model: nn.Module, image: Tensor) -> nn.Module:
    """Return the layer that makes the logits of a segmentation network from its features, looked up once for each model.

    It is the last one that is called and has weights. Layers at the end that only resize the scores of the classes are passed
    by: they get as many channels as there are classes.

    Args:
        model: Called in eval mode at the first look-up; its modes are restored.
        image: (B, C, H, W); the first image is used.

    Raises:
        ModelError: No layer of the model has weights.
    """
    if model in _HEADS and (known := _HEADS[model]()) is not None:
        return known
    called: list[tuple[nn.Module, int]] = []

    def note(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        called.append((module, given[0].shape[1]))

    leaves = [part for part in model.modules() if not list(part.children()) and list(part.parameters())]
    hooks = [module.register_forward_pre_hook(note) for module in leaves]
    try:
        with eval_mode(model), torch.no_grad():
            classes = model(image[:1].to(device_of(model))).shape[1]
    finally:
        for hook in hooks:
            hook.remove()
    if not called:
        raise ModelError(
            f"{type(model).__name__}: expected a layer with weights before the logits, got none; train a network"
        )
    of_features = [module for module, channels in called if channels != classes]
    found = (of_features or [module for module, _ in called])[-1]
    _HEADS[model] = ref(found)
    return found


@contextmanager
def kept_features(model: nn.Module, image: Tensor) -> Iterator[list[Tensor]]:
    """Keep the features (B, D, h, w) that the logits are made of, with their gradients: one entry per forward pass in the block.

    Their grid is that of the padded image or a coarser one, see `features_stride`.

    Args:
        model: A segmentation network.
        image: What it is called with, to find its head.
    """
    features: list[Tensor] = []
    hook = head_layer(model, image).register_forward_pre_hook(lambda module, given: features.append(given[0]))
    try:
        yield features
    finally:
        hook.remove()


def stride_of(model: nn.Module) -> int:
    """Return the multiple to which a network pads the sides of its images; 1 for one that does not say."""
    return int(getattr(model, "stride", None) or 1)


def features_stride(model: nn.Module, image: Tensor, features: Tensor) -> int:
    """Return the rows and columns of an image per cell of its features.

    Raises:
        ModelError: The features do not cover the image evenly.
    """
    step = stride_of(model)
    padded = [-(-side // step) * step for side in image.shape[2:]]
    strides = {side / cells for side, cells in zip(padded, features.shape[2:], strict=True)}
    stride = strides.pop()
    if strides or stride != int(stride):
        raise ModelError(
            f"{type(model).__name__}: expected features that cover {padded[0]}x{padded[1]} pixels evenly, got "
            f"{features.shape[2]}x{features.shape[3]}; use another network"
        )
    return int(stride)


def seen_features(features: Tensor, seen: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """Return features without the cells of the padding, and which cells (B, h, w) see nothing but seen pixels.

    Args:
        features: (B, D, h, w) on the grid of the padded image.
        seen: (B, H, W).
        stride: Rows and columns of the image per cell.
    """
    rows, cols = (-(-side // stride) for side in seen.shape[1:])
    more = (0, cols * stride - seen.shape[2], 0, rows * stride - seen.shape[1])
    unseen = functional.pad((~seen).float()[:, None], more)
    return features[..., :rows, :cols], functional.max_pool2d(unseen, stride)[:, 0] == 0


@contextmanager
def kept_maps(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Keep what a layer gives, with its gradients: one entry per call in the block.

    Args:
        layer: A module of a network, such as one of `named_layer`. A layer that follows must not write into what it gets.
    """
    outputs: list[Tensor] = []
    hook = layer.register_forward_hook(lambda module, given, out: outputs.append(out))
    try:
        yield outputs
    finally:
        hook.remove()


def forward_with_maps(model: nn.Module, layer: nn.Module, image: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits and the maps (B, D, h, w) of a layer, without gradients to the maps.

    Raises:
        DataError: The layer does not give maps once.
    """
    with kept_maps(layer) as outputs:
        logits: Tensor = model(image)
    if len(outputs) != 1 or outputs[0].ndim != 4:
        raise DataError("layer: expected one that gives (B, D, h, w) once, got another; choose a block")
    return logits, outputs[0].detach()


def masked_map_mean(maps: Tensor, mask: Tensor) -> Tensor:
    """Return the mean (B, D) of maps (B, D, h, w) over the pixels of a mask (B, H, W); 0 where an image has none."""
    weight = functional.adaptive_avg_pool2d(mask.float()[:, None], (maps.shape[2], maps.shape[3])).to(maps.device)
    return (maps * weight).sum((2, 3)) / weight.sum((2, 3)).clamp_min(1e-12)

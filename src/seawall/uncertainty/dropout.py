"""Monte Carlo dropout: dropout at inference, with masks drawn per chip."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from seawall.errors import ModelError, UsageError
from seawall.registry import register
from seawall.rng import Keys
from seawall.types import SegmentationModel
from seawall.uncertainty.predictor import Predictor

WHOLE_CHANNELS = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
Hook = Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]


@register("uncertainty", "mc-dropout", paper="arXiv:1506.02142", smoke={"passes": 3})
@dataclass(frozen=True)
class MonteCarloDropout:
    """The mean over passes with dropout left on.

    The model stays in eval mode, so batch normalization keeps its statistics; masks come from each chip's own stream.

    Args:
        passes: Number of passes.
        seed: Seed of the masks where no keys are given.

    Paper: Gal and Ghahramani 2016, arXiv:1506.02142. Differs: masks do not depend on the batch.
    """

    passes: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        if self.passes < 1:
            raise UsageError(f"mc-dropout.passes: expected at least 1, got {self.passes}; 20 is usual")

    def __call__(self, model: SegmentationModel) -> Predictor:
        """Return the predictor.

        Raises:
            ModelError: The model has no active dropout layer: all passes would be the same.
        """
        _dropout_layers(model)
        return Predictor(model, _Drops(self.passes), self.seed)


@dataclass(frozen=True)
class _Drops:
    """The passes of `MonteCarloDropout`, whose field of that name is their number."""

    count: int
    seeded: ClassVar[bool] = True

    def passes(self, model: SegmentationModel, image: Tensor, keys: Keys) -> Iterator[Tensor]:
        """Yield the logits of each pass, each with other masks."""
        layers = _dropout_layers(model)
        for i in range(self.count):
            with _keyed_dropout(layers, keys.fold("dropout", i)):
                logits = model(image)
            yield logits


def _dropout_layers(model: SegmentationModel) -> dict[str, nn.Module]:
    modules = model.named_modules() if isinstance(model, nn.Module) else iter(())
    kinds = (nn.Dropout, *WHOLE_CHANNELS)
    found: dict[str, nn.Module] = {
        name: module for name, module in modules if isinstance(module, kinds) and 0 < module.p < 1
    }
    if not found:
        raise ModelError(
            "mc-dropout: expected a model with dropout layers, got none that drops; train with dropout or use tta"
        )
    return found


@contextmanager
def _keyed_dropout(layers: dict[str, nn.Module], keys: Keys) -> Iterator[None]:
    calls: Counter[str] = Counter()

    def hook(name: str, rate: float, whole: bool) -> Hook:
        def drop(module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> Tensor:
            calls[name] += 1
            shape = (given[0].shape[1], *[1] * (given[0].ndim - 2)) if whole else tuple(given[0].shape[1:])
            kept = keys.fold(name, calls[name]).uniform(shape) >= rate
            return given[0] * (kept.to(given[0]) / (1 - rate))

        return drop

    handles = [
        layer.register_forward_hook(hook(name, float(layer.p), isinstance(layer, WHOLE_CHANNELS)))  # type: ignore[arg-type]
        for name, layer in layers.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

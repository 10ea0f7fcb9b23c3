"""Monte Carlo dropout: dropout at inference, each pass with masks of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from seawall.errors import ModelError, UsageError
from seawall.registry import register
from seawall.rng import Keys
from seawall.types import SegmentationModel
from seawall.uncertainty.predictor import Predictor

Hook = Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]


@register("uncertainty", "mc-dropout", paper="arXiv:1506.02142", smoke={"passes": 3})
@dataclass(frozen=True)
class MonteCarloDropout:
    """The mean over passes with dropout left on.

    Each pass drops whole feature maps, the same ones in every image and tile: a pass is one fixed subnetwork, so a map does
    not depend on how the scene is cut. The model stays in eval mode, so batch normalization keeps its statistics.

    Args:
        passes: Number of passes.
        seed: Seed of the masks.

    Paper: Gal and Ghahramani 2016, arXiv:1506.02142. Differs: masks are constant over pixels and images, also those of
        layers that drop single pixels in training; at a pixel they are distributed alike.
    """

    passes: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        if self.passes < 1:
            raise UsageError(f"mc-dropout.passes: expected at least 1, got {self.passes}; 20 is usual")

    @property
    def count(self) -> int:
        """Number of passes."""
        return self.passes

    def __call__(self, model: SegmentationModel) -> Predictor:
        """Return the predictor.

        Raises:
            ModelError: The model has no active dropout layer: all passes would be the same.
        """
        _dropout_layers(model)
        return Predictor(model, self)

    def pass_logits(self, model: SegmentationModel, image: Tensor) -> Iterator[Tensor]:
        """Yield the logits of each pass, each with other masks."""
        layers = _dropout_layers(model)
        for i in range(self.passes):
            with _masked_dropout(layers, Keys(self.seed, ("",)).fold("dropout", i)):
                logits = model(image)
            yield logits


def _dropout_layers(model: SegmentationModel) -> dict[str, nn.Module]:
    modules = model.named_modules() if isinstance(model, nn.Module) else iter(())
    kinds = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
    found: dict[str, nn.Module] = {
        name: module for name, module in modules if isinstance(module, kinds) and 0 < module.p < 1
    }
    if not found:
        raise ModelError(
            "mc-dropout: expected a model with dropout layers, got none that drops; train one with model.settings.dropout=0.2, or use tta"
        )
    return found


@contextmanager
def _masked_dropout(layers: dict[str, nn.Module], keys: Keys) -> Iterator[None]:
    calls: Counter[str] = Counter()

    def hook(name: str, rate: float) -> Hook:
        def drop(module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> Tensor:
            calls[name] += 1
            shape = (given[0].shape[1], *[1] * (given[0].ndim - 2))
            kept = keys.fold(name, calls[name]).uniform(shape) >= rate
            return given[0] * (kept.to(given[0]) / (1 - rate))

        return drop

    handles = [
        layer.register_forward_hook(hook(name, float(layer.p)))  # type: ignore[arg-type]
        for name, layer in layers.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

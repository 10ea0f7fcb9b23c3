"""What models cost: parameters, multiply-accumulates, receptive field, and seconds per megapixel each way to run them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from seawall.arrays import FloatArray
from seawall.errors import ModelError, SeawallError
from seawall.inference.backends import export_onnx, load_exported
from seawall.models.blocks import Segmenter
from seawall.models.receptive_field import receptive_field
from seawall.models.weights import spec_of
from seawall.modules import eval_mode, on_device
from seawall.result import StageProgress, no_progress
from seawall.types import FittedModel, fill_of

Run = Callable[[FloatArray], object]

COUNTED_SIDE = 256
"""Side of the image on which multiply-accumulates are counted; attention has more per pixel on larger ones."""


@dataclass(frozen=True)
class ModelCost:
    """What a model costs.

    Args:
        parameters: Trained numbers.
        macs_per_pixel: Multiply-accumulates of its convolutions and matrix products per pixel; None where it has none.
        reach: Radius of its receptive field in pixels; None without a bound.
        seconds: Median of the seconds per megapixel, by way.
        slowest: Largest of them, by way.
        failed: Why a way is not possible, by way.
    """

    parameters: int
    macs_per_pixel: float | None
    reach: int | None
    seconds: Mapping[str, float]
    slowest: Mapping[str, float]
    failed: Mapping[str, str]


def measure_costs(
    models: Mapping[str, nn.Module],
    ways: Sequence[str],
    *,
    size: int = 512,
    repeats: int = 5,
    progress: StageProgress = no_progress,
) -> dict[str, ModelCost]:
    """Measure models side by side: they take turns, so that a slow minute of the machine is one of all of them.

    Args:
        models: Modules with a `spec`; they are timed on the CPU.
        ways: Ways to run them, of `seawall.records.WAYS`; a model without a network has one way, "channels-last".
        size: Side of the image in pixels.
        repeats: Rounds; one more before them is not counted.
        progress: Called after every round.
    """

    with ExitStack() as held:
        runs: dict[tuple[str, str], Run] = {}
        failed: dict[str, dict[str, str]] = {name: {} for name in models}
        for i, (name, model) in enumerate(models.items()):
            progress(i, len(models) + repeats + 1, f"prepares {name}")
            folder = Path(held.enter_context(TemporaryDirectory(prefix="seawall-")))
            for way in ways:
                try:
                    runs[name, way] = held.enter_context(_opened(model, way, folder))
                except SeawallError as bad:
                    failed[name][way] = str(bad)
        images = {name: _timed_image(model, size) for name, model in models.items()}
        spent: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
        for round_ in range(repeats + 1):
            progress(len(models) + round_, len(models) + repeats + 1, f"round {round_}")
            for key, run in runs.items():
                began = time.perf_counter()
                run(images[key[0]])
                spent[key].append((time.perf_counter() - began) / (size * size / 1e6))
    return {name: _cost(name, model, spent, failed[name]) for name, model in models.items()}


def count_macs(model: nn.Module, side: int = COUNTED_SIDE) -> float | None:
    """Return the multiply-accumulates per pixel of an image of this side; None for a model without layers that have any."""
    image = torch.from_numpy(_timed_image(model, side))
    cpu = torch.device("cpu")
    with eval_mode(model), on_device(model, cpu), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(image)
    flops = counter.get_total_flops()
    return flops / 2 / side**2 if flops else None


def _cost(
    name: str, model: nn.Module, spent: Mapping[tuple[str, str], Sequence[float]], failed: Mapping[str, str]
) -> ModelCost:
    mine = {way: seconds[1:] for (of, way), seconds in spent.items() if of == name}
    parameters = sum(weight.numel() for weight in model.parameters())
    return ModelCost(
        parameters,
        None if isinstance(model, FittedModel) else count_macs(model),
        receptive_field(model).reach,
        {way: statistics.median(seconds) for way, seconds in mine.items()},
        {way: max(seconds) for way, seconds in mine.items()},
        failed,
    )


def _timed_image(model: nn.Module, side: int) -> FloatArray:
    """Return an image (1, C, side, side) with edges and noise in the unit's range."""
    spec = spec_of(model)
    rng = np.random.default_rng(0)
    coarse = rng.uniform(0.0, 0.4, (1, len(spec.bands), side // 16 + 1, side // 16 + 1)).repeat(16, 2).repeat(16, 3)
    image = coarse[..., :side, :side] + rng.normal(0.0, 0.01, (1, len(spec.bands), side, side))
    low = np.array(fill_of(spec.unit, len(spec.bands)))[:, None, None]
    return np.asarray(np.where(low == 0, image, low + 5 + 50 * image), np.float32)


@contextmanager
def _opened(model: nn.Module, way: str, folder: Path) -> Iterator[Run]:
    """Make a model ready to run one way; ONNX Runtime and OpenVINO share one exported file."""
    if way in ("onnx", "openvino"):
        if isinstance(model, FittedModel):
            raise ModelError(f"cost: expected a network, got {spec_of(model).architecture}; it runs in PyTorch alone")
        path = folder / "model.onnx"
        if not path.exists():
            export_onnx(model, path)
        yield load_exported(path, way)
        return
    laid_out = deepcopy(model).cpu().eval()
    if way == "contiguous" and not isinstance(laid_out, Segmenter):
        raise ModelError(f"cost: expected a network of seawall, got {spec_of(model).architecture}; it has one layout")
    if isinstance(laid_out, Segmenter):
        laid_out.lay_out(torch.contiguous_format if way == "contiguous" else torch.channels_last)

    def run(image: FloatArray) -> object:
        with torch.inference_mode():
            return laid_out(torch.from_numpy(image))

    yield run

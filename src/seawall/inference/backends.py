"""Inference backends: PyTorch, ONNX Runtime or OpenVINO, behind one call from images to probabilities."""

from __future__ import annotations

import importlib
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from seawall.arrays import FloatArray
from seawall.errors import ModelError, RunError, UsageError, did_you_mean
from seawall.inference.tiling import Predict
from seawall.io import write_atomic
from seawall.models.keyed import keyed_part
from seawall.models.receptive_field import random_image
from seawall.models.weights import spec_of
from seawall.modules import checked_call, checked_forward, eval_mode, on_device
from seawall.types import ModelSpec
from seawall.uncertainty.predictor import UncertainModel

Runtime = Literal["torch", "onnx", "openvino"]
RUNTIMES: tuple[Runtime, ...] = ("torch", "onnx", "openvino")
_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_PACKAGES = {"onnx": _ONNX_PACKAGES, "openvino": (*_ONNX_PACKAGES, "openvino")}


@contextmanager
def open_runtime(
    model: nn.Module, runtime: Runtime = "torch", *, device: str = "auto", disagreement: bool = False
) -> Iterator[Predict]:
    """Make a network ready for inference: the context is a function from images to probabilities.

    The model is in evaluation mode on the device meanwhile, and in its former state afterwards.

    Args:
        model: Any module with a `spec` that gives logits (B, K, H, W).
        runtime: torch, onnx (ONNX Runtime) or openvino; the last two run on the CPU and need the extra `deploy`.
        device: auto, cpu, cuda, cuda:1, mps.
        disagreement: Give the mutual information of a predictor's passes as one more channel; of PyTorch only.

    Raises:
        UsageError: An unknown runtime or device, or one that does not give the disagreement.
        ModelError: The model has no spec or its output is not logits of its classes.
        RunError: The extra `deploy` is not installed.
    """
    if runtime not in RUNTIMES:
        raise UsageError(f"runtime: unknown name {runtime!r}; {did_you_mean(runtime, RUNTIMES)}")
    spec = spec_of(model)
    if runtime == "torch":
        torch_device = find_device(device)
        with eval_mode(model), on_device(model, torch_device):
            yield lambda images: _predict_torch(model, spec, torch_device, disagreement, images)
        return
    if disagreement:
        raise UsageError(
            f"runtime: expected torch for a predictor of several passes, got {runtime}, which gives their mean alone; use --runtime torch"
        )
    if device not in ("auto", "cpu"):
        raise UsageError(f"device: expected cpu with the {runtime} runtime, got {device!r}; use --runtime torch")
    require_packages(runtime)
    with TemporaryDirectory(prefix="seawall-") as folder:
        path = Path(folder) / "model.onnx"
        export_onnx(model, path)
        logits = load_exported(path, runtime)

        def predict(images: FloatArray) -> FloatArray:
            got = logits(images)
            _check_logits(got.shape, spec, images.shape)
            return _softmax(got)

        yield predict


def find_device(name: str) -> torch.device:
    """Return a device by name; "auto" is the accelerator if there is one.

    Raises:
        UsageError: The name is unknown or this machine has no such device.

    Example:
        >>> find_device("cpu")
        device(type='cpu')
    """
    if name == "auto":
        best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device(best)
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as bad:
        raise UsageError(
            f"device: expected auto or a device of this machine, got {name!r} ({str(bad).splitlines()[0]}); use cpu"
        ) from bad
    return device


def export_onnx(model: nn.Module, path: Path) -> None:
    """Write a network as one self-contained ONNX file: "image" (N, C, H, W) in data units to "logits".

    Args:
        model: Any module with a `spec`.
        path: Final name; batch, height and width stay free.

    Raises:
        RunError: The extra `deploy` is not installed.
        ModelError: The network cannot be exported, is behind a keyed transform, or the exported one does not compute the same.
    """
    if keyed_part(model) is not None:
        raise ModelError(
            f"{path}: expected a network without a key, got one behind a keyed transform, which the file would give away; use --runtime torch"
        )
    require_packages("onnx")
    onnx = importlib.import_module("onnx")
    spec = spec_of(model)
    example = random_image(spec, 2, 64)
    cpu = torch.device("cpu")
    with TemporaryDirectory(prefix="seawall-") as folder, eval_mode(model), on_device(model, cpu), _errors_alone():
        raw = Path(folder) / "raw.onnx"
        free = {0: torch.export.Dim("n"), 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
        try:
            with redirect_stdout(io.StringIO()), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # raised by the exporter's own code
                torch.onnx.export(
                    model,
                    (example,),
                    str(raw),
                    dynamo=True,
                    input_names=["image"],
                    output_names=["logits"],
                    dynamic_shapes=(free,),
                    external_data=False,
                    verbose=False,
                )
            proto = onnx.load(str(raw))
            onnx.checker.check_model(proto)
        except Exception as bad:  # the exporter raises its own and torch's internal types
            raise ModelError(
                f"{path}: expected a network that ONNX can express, got {type(bad).__name__}: {str(bad).splitlines()[0][:160]}; "
                "use --runtime torch"
            ) from bad
        _check_export(model, raw, spec, path)
        write_atomic(path, raw.read_bytes())


@contextmanager
def _errors_alone() -> Iterator[None]:
    """Keep the exporter's loggers from warnings about its own graphs."""
    levels = {log: log.level for log in map(logging.getLogger, ("torch.onnx", "onnx_ir"))}
    try:
        for log in levels:
            log.setLevel(logging.ERROR)
        yield
    finally:
        for log, level in levels.items():
            log.setLevel(level)


def require_packages(runtime: str) -> None:
    """Check that a runtime's packages are installed.

    Raises:
        RunError: They are not.
    """
    for name in _PACKAGES.get(runtime, ()):
        try:
            importlib.import_module(name)
        except ImportError as gone:
            raise RunError(
                f"runtime {runtime}: expected the package {name}, got none; install it with: pip install 'seawall[deploy]'"
            ) from gone


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that the memory of the machine or of its accelerator is used up."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(
        message in text
        for message in ("out of memory", "can't allocate memory", "not enough memory", "failed to allocate")
    )


def _predict_torch(
    model: nn.Module, spec: ModelSpec, device: torch.device, disagreement: bool, images: FloatArray
) -> FloatArray:
    with torch.inference_mode():
        image = torch.from_numpy(images).to(device)
        if disagreement and isinstance(model, UncertainModel):
            found = checked_call(type(model).__name__, model.predict, image)
            _check_logits(found.probability.shape, spec, images.shape)
            made = torch.cat([found.probability, found.mutual_information[:, None]], 1)
        else:
            logits = checked_forward(model, image)
            if not isinstance(logits, torch.Tensor):
                raise ModelError(
                    f"model: expected logits, got {type(logits).__name__}; wrap the network with seawall's adapter"
                )
            _check_logits(logits.shape, spec, images.shape)
            made = torch.softmax(logits.float(), 1)
        return np.asarray(made.contiguous().cpu().numpy(), np.float32)


def _check_logits(got: tuple[int, ...], spec: ModelSpec, given: tuple[int, ...]) -> None:
    expected = (given[0], len(spec.classes), *given[2:])
    if tuple(got) != expected:
        raise ModelError(
            f"model: expected logits of shape {expected}, got {tuple(got)}; wrap the network with seawall's adapter"
        )


def _softmax(logits: FloatArray) -> FloatArray:
    powers = logits - logits.max(1, keepdims=True)
    np.exp(powers, out=powers)
    return np.asarray(powers / powers.sum(1, keepdims=True), np.float32)


def load_exported(path: Path, runtime: str) -> Predict:
    """Return a function from images (N, C, H, W) to the logits of an exported network, on the CPU and PyTorch's number of threads.

    Args:
        path: File of `export_onnx`.
        runtime: onnx or openvino.

    Raises:
        RunError: The extra `deploy` is not installed.
    """
    require_packages(runtime)
    return _load_onnx(path) if runtime == "onnx" else _load_openvino(path)


def _load_onnx(path: Path) -> Predict:
    engine = importlib.import_module("onnxruntime")
    options = engine.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = engine.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda images: np.asarray(session.run(None, {"image": images})[0], np.float32)


def _load_openvino(path: Path) -> Predict:
    settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"}
    compiled = _openvino_core().compile_model(str(path), "CPU", settings)
    return lambda images: np.array(compiled([images])[0], np.float32)


@cache
def _openvino_core() -> Any:
    """Return the one core of the process, which stays until its end.

    Its plugin gives the thread that loads it a stack for signals. If another thread unloads it, such as one in which garbage is
    collected, that stack is freed while it is in use, and the next signal, Ctrl-C too, ends the process with a segmentation fault.
    """
    return importlib.import_module("openvino").Core()


def _check_export(model: nn.Module, raw: Path, spec: ModelSpec, path: Path) -> None:
    run = _load_onnx(raw)
    for count, side in ((1, 96), (3, 64)):  # other sizes than the exported one: the free axes are free
        image = random_image(spec, count, side)
        with torch.inference_mode():
            expected = model(image).numpy()
        got = run(image.numpy())
        worst = float(np.abs(got - expected).max())
        if not worst <= 1e-3 * max(1.0, float(np.abs(expected).max())):
            raise ModelError(
                f"{path}: expected the same logits as PyTorch's, got a difference of {worst:.3g}; report it"
            )

"""Weights that can be trusted: safetensors with the specification and a digest inside, never a pickle."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import cast, get_args

import torch
from torch import Tensor, nn

from seawall import __version__, registry
from seawall.errors import ModelError, RunError, UsageError
from seawall.io import write_atomic
from seawall.models.container import digest, pack, unpack
from seawall.models.standardize import Standardize
from seawall.split_record import ATTRIBUTE, SplitRecord
from seawall.types import ModelSpec, Unit

"""Attribute of a module that holds the split of its training."""

LIMIT = 1e6
"""A weight beyond this is damage, not learning; running variances of unscaled inputs may be larger."""


def save_model(path: Path | str, model: nn.Module) -> str:
    """Write a model's weights and specification, whole or not at all.

    Args:
        path: Such as model.safetensors.
        model: A module with a `spec`; the split of its training travels along where `set_split` told it.

    Returns:
        The sha256 digest of weights, specification and split, which is also inside the file.

    Raises:
        ModelError: The model has no specification, or weights that are not finite.
        RunError: The disk is full or the folder cannot be written; an earlier file stays.
    """
    path = Path(path)
    tensors = state_of(model)
    check_finite(tensors, str(path))
    split = split_of(model)
    meta = {"seawall": __version__, "spec": spec_to_json(spec_of(model))}
    data, digest_text = pack(tensors, meta | ({"split": split.to_json()} if split is not None else {}))
    try:
        write_atomic(path, data)
    except OSError as full:
        raise RunError(
            f"{path}: expected to write the weights, got {full.strerror or full}; free the disk or choose another folder"
        ) from full
    return digest_text


def load_model(
    path: Path | str,
    *,
    bands: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    unit: str | None = None,
    into: nn.Module | None = None,
) -> nn.Module:
    """Read a model, in eval mode on the CPU, after checking that the file is whole and fits its use.

    Args:
        path: A file of `save_model`.
        bands: What the data has; the model must want the same, in the same order.
        classes: What the data has.
        unit: What the data is in.
        into: A module of the same layers to load into, for an architecture that is not registered.

    Raises:
        ModelError: The file is damaged, a pickle, or made for other data; its weights are not finite, or
            do not fit the architecture.
    """
    path = Path(path)
    tensors, meta = unpack(path)
    spec = spec_from_json(path, meta.get("spec", ""))
    check_spec(path, spec, bands=bands, classes=classes, unit=unit)
    check_finite(tensors, f"{path} (sha256 {meta['digest'][:12]})")
    model = into if into is not None else build_model(path, spec)
    _fill(path, model, tensors)
    for part in model.modules():
        if isinstance(part, Standardize):
            part.check()
    set_split(model, _split_from(path, meta))
    return model.eval()


def read_spec(path: Path | str) -> ModelSpec:
    """Return the specification inside a weights file, after checking that the file is whole.

    Raises:
        ModelError: The file is damaged or a pickle.
    """
    return spec_from_json(Path(path), unpack(Path(path))[1].get("spec", ""))


def split_of(model: nn.Module | Path | str) -> SplitRecord | None:
    """Return what a model learned from and was chosen by, or None where that is not known.

    Args:
        model: A weights file, a module, or a module that wraps one.

    Raises:
        ModelError: The file is damaged or a pickle.
    """
    if not isinstance(model, nn.Module):
        return _split_from(Path(model), unpack(Path(model))[1])
    found = (getattr(part, ATTRIBUTE, None) for part in model.modules())
    return next((record for record in found if isinstance(record, SplitRecord)), None)


def set_split(model: nn.Module, split: SplitRecord | None) -> None:
    """Tell a model what it learns from and is chosen by; `save_model` writes it into the weights file."""
    setattr(model, ATTRIBUTE, split)


def digest_of(model: nn.Module) -> str:
    """Return the sha256 of a model's weights as they are in memory, to notice bits that flipped at run time."""
    return digest(state_of(model), {})


def spec_of(model: nn.Module) -> ModelSpec:
    """Return a model's specification.

    Raises:
        ModelError: It has none.
    """
    spec = getattr(model, "spec", None)
    if not isinstance(spec, ModelSpec):
        raise ModelError(
            f"{type(model).__name__}: expected a model with a ModelSpec as .spec, got {spec!r}; wrap it with seawall.models.adapter.adapt"
        )
    return spec


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the model's weights and buffers, contiguous, on the CPU, sharing memory with nothing."""
    return {
        name: tensor.detach().to("cpu", copy=True).contiguous()
        for name, tensor in cast(Mapping[str, Tensor], model.state_dict()).items()
    }


def check_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """Refuse weights that are not finite or absurdly large.

    Raises:
        ModelError: Names the first bad tensor.
    """
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        largest = float(tensor.abs().max())
        if not largest <= (1e12 if name.endswith("running_var") else LIMIT):
            raise ModelError(
                f"{where}: expected finite weights below {LIMIT:g}, got {largest:g} in {name!r}; the weights are corrupted: train again or take a backup"
            )


def check_spec(
    path: Path, spec: ModelSpec, *, bands: Sequence[str] | None, classes: Sequence[str] | None, unit: str | None
) -> None:
    """Refuse a model made for other data.

    Raises:
        ModelError: Names what differs.
    """
    wanted = {"bands": bands, "classes": classes}
    for name, want in wanted.items():
        have = tuple(getattr(spec, name))
        if want is not None and tuple(want) != have:
            raise ModelError(
                f"{path}: expected a model for the {name} {', '.join(want)}, got one for {', '.join(have)}; choose the {name} of the data or another model"
            )
    if unit is not None and unit != spec.unit:
        raise ModelError(
            f"{path}: expected a model for {unit}, got one for {spec.unit}; convert the data or choose another model"
        )


def spec_to_json(spec: ModelSpec) -> str:
    """Return the specification as JSON with sorted keys."""
    return json.dumps(asdict(spec), sort_keys=True)


def spec_from_json(path: Path, text: str) -> ModelSpec:
    """Read a specification.

    Raises:
        ModelError: A field is missing, unknown or of the wrong type.
    """
    try:
        said = json.loads(text)
        spec = ModelSpec(
            bands=_texts(said.pop("bands")),
            classes=_texts(said.pop("classes")),
            unit=said.pop("unit"),
            gsd_m=float(said.pop("gsd_m")),
            architecture=str(said.pop("architecture")),
            settings=dict(said.pop("settings")),
            note=str(said.pop("note", "")),
        )
    except (ValueError, TypeError, KeyError, AttributeError) as bad:
        raise ModelError(
            f"{path}: expected a seawall model specification, got {text[:60]!r} ({bad}); save the model with seawall.models.weights.save_model"
        ) from bad
    if said or spec.unit not in get_args(Unit) or not spec.gsd_m > 0:
        raise ModelError(
            f"{path}: expected a specification that this version knows, got unit {spec.unit!r}, gsd_m {spec.gsd_m}, extra {sorted(said)[:5]}; update seawall"
        )
    return spec


def build_model(path: Path, spec: ModelSpec) -> nn.Module:
    """Build the architecture that a specification names.

    Raises:
        ModelError: The architecture or its settings are not known here.
    """
    if spec.architecture == "module":
        raise ModelError(
            f"{path}: expected a registered architecture, got weights of a module of your own; pass it as load_model(..., into=module)"
        )
    try:
        make = cast(Callable[[ModelSpec], nn.Module], registry.build("model", spec.architecture, spec.settings))
    except UsageError as bad:
        raise ModelError(f"{path}: expected a known architecture, got {bad}; install the package that has it") from bad
    # The drawn weights are about to be replaced: leave the caller's random stream as it was.
    with torch.random.fork_rng(devices=[]):
        return make(spec)


def _split_from(path: Path, meta: Mapping[str, str]) -> SplitRecord | None:
    if "split" not in meta:
        return None
    try:
        return SplitRecord.from_json(meta["split"])
    except ValueError as bad:
        raise ModelError(
            f"{path}: expected the split of the training, got {meta['split'][:60]!r} ({bad}); update seawall"
        ) from bad


def _fill(path: Path, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    want = cast(Mapping[str, Tensor], model.state_dict())
    missing = sorted(set(want) - set(tensors))
    extra = sorted(set(tensors) - set(want))
    if missing or extra:
        raise ModelError(
            f"{path}: expected the tensors of {spec_name(model)}, got {len(missing)} missing {missing[:5]} and {len(extra)} unexpected {extra[:5]}; use the settings it was trained with"
        )
    wrong = [name for name in sorted(want) if want[name].shape != tensors[name].shape]
    if wrong:
        shapes = ", ".join(f"{n} {tuple(tensors[n].shape)} for {tuple(want[n].shape)}" for n in wrong[:5])
        raise ModelError(
            f"{path}: expected the shapes of {spec_name(model)}, got {shapes}; use the settings it was trained with"
        )
    model.load_state_dict(dict(tensors))


def spec_name(model: nn.Module) -> str:
    """Return how a message calls the model."""
    spec = getattr(model, "spec", None)
    return spec.architecture if isinstance(spec, ModelSpec) else type(model).__name__


def _texts(values: object) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError(f"{values!r} is no list of names")
    return tuple(values)

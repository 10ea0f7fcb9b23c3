"""Weights files: safetensors with the specification and a digest inside, never a pickle."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast, get_args

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from seawall import __version__, registry
from seawall.errors import ModelError, RunError, UsageError
from seawall.io import write_atomic
from seawall.keyed_transforms.keys import SecretKey
from seawall.models.blocks import Standardize
from seawall.models.checksums import WeightChecksums, describe_groups, tensor_bytes
from seawall.models.keyed import KEYED, rebuild_keyed
from seawall.split_record import SPLIT_ATTRIBUTE, SplitRecord
from seawall.types import ModelSpec, Unit, Units, joint_unit, unit_text, units_of

CHECKSUMS = "checksums"
"""Key of the checksums of groups of bytes in the metadata; files of earlier versions have none."""
WEIGHT_LIMIT = 1e6
"""Largest plausible weight; running variances of unscaled inputs may be larger."""


def save_model(path: Path | str, model: nn.Module) -> str:
    """Write a model's weights and specification atomically.

    Args:
        path: Such as model.safetensors.
        model: A module with a `spec`; the split of its training is stored too where `set_split` has set it.

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
    meta[CHECKSUMS] = WeightChecksums.of(tensors).to_json()
    data, digest = pack_safetensors(tensors, meta | ({"split": split.to_json()} if split is not None else {}))
    try:
        write_atomic(path, data)
    except OSError as full:
        raise RunError(
            f"{path}: expected to write the weights, got {full.strerror or full}; free the disk or choose another folder"
        ) from full
    return digest


def load_model(
    path: Path | str,
    *,
    bands: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    unit: Units | None = None,
    into: nn.Module | None = None,
    key: SecretKey | None = None,
) -> nn.Module:
    """Read a model, in eval mode on the CPU, after checking that the file is intact and fits the data.

    Args:
        path: A file of `save_model`.
        bands: Bands of the data; those of the model must be the same, in the same order.
        classes: Classes of the data.
        unit: Unit of the data.
        into: A module of the same layers to load into, for an architecture that is not registered.
        key: Key of a network behind a keyed transform; see `seawall.keyed_transforms.keys.read_key`.

    Raises:
        ModelError: The file is damaged, a pickle, or made for other data; its weights are not finite, or
            do not fit the architecture; it needs a key and there is none, another one, or there is one without need.
    """
    path = Path(path)
    tensors, meta = unpack_safetensors(path)
    spec = spec_from_json(path, meta.get("spec", ""))
    check_spec_fits(path, spec, bands=bands, classes=classes, unit=unit)
    check_finite(tensors, f"{path} (sha256 {meta['digest'][:12]})")
    model = into if into is not None else build_model(path, spec, key)
    _load_tensors(path, model, tensors)
    for part in model.modules():
        if isinstance(part, Standardize):
            part.check()
    set_split(model, _split_from(path, meta))
    return model.eval()


def read_spec(path: Path | str) -> ModelSpec:
    """Return the specification inside a weights file, after checking that the file is intact.

    Raises:
        ModelError: The file is damaged or a pickle.
    """
    return spec_from_json(Path(path), unpack_safetensors(Path(path))[1].get("spec", ""))


def read_checksums(path: Path | str) -> WeightChecksums | None:
    """Return the checksums inside a weights file, after checking that it is intact; None for one of an earlier version.

    Raises:
        ModelError: The file is damaged or a pickle.
    """
    path = Path(path)
    text = unpack_safetensors(path)[1].get(CHECKSUMS)
    try:
        return None if text is None else WeightChecksums.from_json(text)
    except ValueError as bad:
        raise ModelError(f"{path}: expected checksums that this version knows, got {bad}; update seawall") from bad


def split_of(model: nn.Module | Path | str) -> SplitRecord | None:
    """Return the split that a model was trained and selected with, or None where it is not known.

    Args:
        model: A weights file, a module, or a module that wraps one.

    Raises:
        ModelError: The file is damaged or a pickle.
    """
    if not isinstance(model, nn.Module):
        return _split_from(Path(model), unpack_safetensors(Path(model))[1])
    found = (getattr(part, SPLIT_ATTRIBUTE, None) for part in model.modules())
    return next((record for record in found if isinstance(record, SplitRecord)), None)


def set_split(model: nn.Module, split: SplitRecord | None) -> None:
    """Set the split that a model is trained and selected with; `save_model` writes it into the weights file."""
    setattr(model, SPLIT_ATTRIBUTE, split)


def weights_digest(model: nn.Module) -> str:
    """Return the sha256 of a model's weights in memory, to detect bits that flipped at run time."""
    return tensors_digest(state_of(model), {})


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
    """Return a copy of the model's weights and buffers, contiguous, on the CPU."""
    return {
        name: tensor.detach().to("cpu", copy=True).contiguous()
        for name, tensor in cast(Mapping[str, Tensor], model.state_dict()).items()
    }


def check_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """Check that weights are finite and at most `WEIGHT_LIMIT`.

    Raises:
        ModelError: Names the first tensor that is not.
    """
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        largest = float(tensor.abs().max())
        if not largest <= (1e12 if name.endswith("running_var") else WEIGHT_LIMIT):
            raise ModelError(
                f"{where}: expected finite weights below {WEIGHT_LIMIT:g}, got {largest:g} in {name!r}; the weights are corrupted: train again or take a backup"
            )


def check_spec_fits(
    path: Path, spec: ModelSpec, *, bands: Sequence[str] | None, classes: Sequence[str] | None, unit: Units | None
) -> None:
    """Check that a model is for the given data.

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
            f"{path}: expected a model for {unit_text(unit)}, got one for {unit_text(spec.unit)}; convert the data or choose another model"
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
        values = json.loads(text)
        spec = ModelSpec(
            bands=_name_tuple(values.pop("bands")),
            classes=_name_tuple(values.pop("classes")),
            unit=_units_from(values.pop("unit")),
            gsd_m=float(values.pop("gsd_m")),
            architecture=str(values.pop("architecture")),
            settings=dict(values.pop("settings")),
            note=str(values.pop("note", "")),
        )
    except (ValueError, TypeError, KeyError, AttributeError) as bad:
        raise ModelError(
            f"{path}: expected a seawall model specification, got {text[:60]!r} ({bad}); save the model with seawall.models.weights.save_model"
        ) from bad
    units = units_of(spec.unit, len(spec.bands))
    if values or len(units) != len(spec.bands) or not {*units} <= {*get_args(Unit)} or not spec.gsd_m > 0:
        raise ModelError(
            f"{path}: expected a specification that this version knows, got unit {spec.unit!r}, gsd_m {spec.gsd_m}, extra {sorted(values)[:5]}; update seawall"
        )
    return spec


def build_model(path: Path, spec: ModelSpec, key: SecretKey | None = None) -> nn.Module:
    """Build the architecture that a specification names, behind its keyed transform if it has one.

    Raises:
        ModelError: The architecture or its settings are not known here, or the key is missing, another one, or of no use.
    """
    if key is not None and spec.architecture != KEYED:
        raise ModelError(f"{path}: expected weights that need a key, got {spec.architecture} without one; leave it out")
    if spec.architecture == "module":
        raise ModelError(
            f"{path}: expected a registered architecture, got weights of a module of your own; pass it as load_model(..., into=module)"
        )
    try:
        # The random weights are replaced later: leave the caller's random stream unchanged.
        with torch.random.fork_rng(devices=[]):
            if spec.architecture == KEYED:
                return rebuild_keyed(str(path), spec, key)
            make = cast(Callable[[ModelSpec], nn.Module], registry.build("model", spec.architecture, spec.settings))
            return make(spec)
    except UsageError as bad:
        raise ModelError(f"{path}: expected a known architecture, got {bad}; install the package that has it") from bad


def _split_from(path: Path, meta: Mapping[str, str]) -> SplitRecord | None:
    if "split" not in meta:
        return None
    try:
        return SplitRecord.from_json(meta["split"])
    except ValueError as bad:
        raise ModelError(
            f"{path}: expected the split of the training, got {meta['split'][:60]!r} ({bad}); update seawall"
        ) from bad


def _load_tensors(path: Path, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    want = cast(Mapping[str, Tensor], model.state_dict())
    missing = sorted(set(want) - set(tensors))
    extra = sorted(set(tensors) - set(want))
    if missing or extra:
        raise ModelError(
            f"{path}: expected the tensors of {_architecture_name(model)}, got {len(missing)} missing {missing[:5]} and {len(extra)} unexpected {extra[:5]}; use the settings it was trained with"
        )
    wrong = [name for name in sorted(want) if want[name].shape != tensors[name].shape]
    if wrong:
        shapes = ", ".join(f"{n} {tuple(tensors[n].shape)} for {tuple(want[n].shape)}" for n in wrong[:5])
        raise ModelError(
            f"{path}: expected the shapes of {_architecture_name(model)}, got {shapes}; use the settings it was trained with"
        )
    model.load_state_dict(dict(tensors))


def _architecture_name(model: nn.Module) -> str:
    """Return the name of a model for messages: its architecture, or its class."""
    spec = getattr(model, "spec", None)
    return spec.architecture if isinstance(spec, ModelSpec) else type(model).__name__


def _units_from(value: object) -> Units:
    return joint_unit(cast(tuple[Unit, ...], _name_tuple(value))) if isinstance(value, list) else cast(Unit, value)


def _name_tuple(values: object) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError(f"{values!r} is no list of names")
    return tuple(values)


HEADER_LIMIT = 64 * 2**20
TORCH_DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
SAFETENSORS_DTYPES = {kind: name for name, kind in TORCH_DTYPES.items()}


def pack_safetensors(tensors: Mapping[str, Tensor], meta: Mapping[str, str]) -> tuple[bytes, str]:
    """Return the bytes of a file and the digest inside it; the same content gives the same bytes.

    Args:
        tensors: Contiguous tensors on the CPU.
        meta: Metadata.

    Raises:
        ModelError: A tensor has a type that is not supported.
    """
    sha256 = tensors_digest(tensors, meta)
    header: dict[str, object] = {"__metadata__": dict(sorted({**meta, "digest": sha256}.items()))}
    # The format wants wide types first, so that every tensor is aligned.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    start = 0
    for name in order:
        tensor = tensors[name]
        end = start + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _dtype_name(name, tensor), "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([struct.pack("<Q", len(text)), text, *(tensor_bytes(tensors[name]) for name in order)]), sha256


def unpack_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a file of `pack_safetensors`; nothing in it is executed.

    Returns:
        The tensors and the metadata.

    Raises:
        ModelError: It is missing, a pickle, cut off, has a header that contradicts itself, or another digest.
    """
    try:
        data = path.read_bytes()
    except OSError as gone:
        raise ModelError(f"{path}: expected a weights file, got {gone.strerror or gone}; check the path") from gone
    meta = _check_header(path, data)
    try:
        tensors = safetensors.torch.load(data)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as bad:
        raise ModelError(f"{path}: expected safetensors, got {bad}; copy the file again") from bad
    if "digest" not in meta:
        raise ModelError(f"{path}: expected a digest in the metadata, got none; save the weights with seawall")
    want = meta["digest"]
    got = tensors_digest(tensors, {key: text for key, text in meta.items() if key != "digest"})
    if got != want:
        raise ModelError(
            f"{path}: expected sha256 {want[:12]}, got {got[:12]}; bytes of the file have changed{_changed_part(tensors, meta)}: "
            "copy it again or take a backup"
        )
    return tensors, meta


def _changed_part(tensors: Mapping[str, Tensor], meta: Mapping[str, str]) -> str:
    """Return where the bytes of a damaged file changed, as far as its checksums say so."""
    try:
        changed = WeightChecksums.from_json(meta.get(CHECKSUMS, "")).changed_groups(tensors)
    except ValueError:
        return ""
    return f" in {describe_groups(changed)}" if changed else " in the metadata"


def tensors_digest(tensors: Mapping[str, Tensor], meta: Mapping[str, str]) -> str:
    """Return the sha256 over names, types, shapes and bytes of tensors on the CPU, and over the metadata."""
    digest = hashlib.sha256(json.dumps(dict(meta), sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def _check_header(path: Path, data: bytes) -> dict[str, str]:
    if not data:
        raise ModelError(f"{path}: expected weights, got 0 bytes; copy the file again")
    # a header of 640 bytes begins like a pickle; the byte after the length differs
    if (data[:1] == b"\x80" and data[1:2] in b"\x02\x03\x04\x05" and data[8:9] != b"{") or data[:2] == b"PK":
        raise ModelError(
            f"{path}: expected safetensors, got a pickle or a torch archive, which can run code when it is read and is never opened here; "
            "convert it with safetensors.torch.save_file where you trust it"
        )
    size = struct.unpack("<Q", data[:8])[0] if len(data) >= 8 else HEADER_LIMIT + 1
    if size > min(HEADER_LIMIT, len(data) - 8):
        raise ModelError(
            f"{path}: expected a safetensors header, got {len(data)} bytes that hold none; copy the file again"
        )
    try:
        header = json.loads(data[8 : 8 + size], object_pairs_hook=_no_doubles, parse_constant=_no_constants)
        meta = {str(key): str(text) for key, text in dict(header.pop("__metadata__", {})).items()}
        spans = sorted(_byte_range(name, entry) for name, entry in header.items())
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as bad:
        raise ModelError(f"{path}: expected a safetensors header, got {bad}; copy the file again") from bad
    end = 0
    for start, stop, name in spans:
        if start != end:
            raise ModelError(
                f"{path}: expected {name!r} at byte {end}, got {start}; the header is wrong: copy the file again"
            )
        end = stop
    if end != len(data) - 8 - size:
        raise ModelError(
            f"{path}: expected {end} bytes of tensors, got {len(data) - 8 - size}; the file is cut off: copy it again"
        )
    return meta


def _byte_range(name: str, entry: Any) -> tuple[int, int, str]:
    start, stop = entry["data_offsets"]
    shape = entry["shape"]
    if not all(isinstance(n, int) and 0 <= n < 2**48 for n in (start, stop, *shape)):
        raise ValueError(f"sizes of {name!r} that are no counts")
    if entry["dtype"] not in TORCH_DTYPES:
        raise ValueError(f"type {entry['dtype']!r} of {name!r}")
    if stop - start != math.prod(shape) * TORCH_DTYPES[entry["dtype"]].itemsize:
        raise ValueError(f"{stop - start} bytes for {name!r} of shape {shape}")
    return start, stop, name


def _no_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if len(set(keys)) != len(keys):
        raise ValueError("a key twice")
    return dict(pairs)


def _no_constants(text: str) -> float:
    raise ValueError(f"the number {text}")


def _dtype_name(name: str, tensor: Tensor) -> str:
    if tensor.dtype not in SAFETENSORS_DTYPES:
        raise ModelError(f"{name}: expected numbers, got {tensor.dtype}; leave it out of the state")
    return SAFETENSORS_DTYPES[tensor.dtype]

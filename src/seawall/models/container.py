"""The safetensors container: a deterministic writer, and a reader that believes nothing.

Layout: 8 bytes little-endian header length, a JSON header {name: {dtype, shape, data_offsets}}, the bytes.
The digest in the metadata covers every tensor's name, type, shape and bytes, and the rest of the metadata.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from seawall.errors import ModelError

HEADER_LIMIT = 64 * 2**20
KINDS: Mapping[str, torch.dtype] = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
NAMES = {kind: name for name, kind in KINDS.items()}


def pack(tensors: Mapping[str, Tensor], meta: Mapping[str, str]) -> tuple[bytes, str]:
    """Return the bytes of a file and the digest inside it; the same content gives the same bytes.

    Args:
        tensors: Contiguous tensors on the CPU.
        meta: Texts to travel with them.

    Raises:
        ModelError: A tensor has a type that the container does not hold.
    """
    sealed = digest(tensors, meta)
    header: dict[str, object] = {"__metadata__": dict(sorted({**meta, "digest": sealed}.items()))}
    # The format wants wide types first, so that every tensor is aligned.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    start = 0
    for name in order:
        tensor = tensors[name]
        end = start + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _kind(name, tensor), "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([struct.pack("<Q", len(text)), text, *(_bytes(tensors[name]) for name in order)]), sealed


def unpack(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a file of `pack`, nothing of which is executed.

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
    got = digest(tensors, {key: text for key, text in meta.items() if key != "digest"})
    if got != want:
        raise ModelError(
            f"{path}: expected sha256 {want[:12]}, got {got[:12]}; bytes of the file have changed: copy it again or take a backup"
        )
    return tensors, meta


def digest(tensors: Mapping[str, Tensor], meta: Mapping[str, str]) -> str:
    """Return the sha256 over names, types, shapes and bytes of tensors on the CPU, and over the metadata."""
    seal = hashlib.sha256(json.dumps(dict(meta), sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        seal.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        seal.update(_bytes(tensor))
    return seal.hexdigest()


def _check_header(path: Path, data: bytes) -> dict[str, str]:
    if not data:
        raise ModelError(f"{path}: expected weights, got 0 bytes; copy the file again")
    # a header of 640 bytes begins as a pickle does: what follows the length tells them apart
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
        spans = sorted(_span(name, entry) for name, entry in header.items())
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


def _span(name: str, entry: Any) -> tuple[int, int, str]:
    start, stop = entry["data_offsets"]
    shape = entry["shape"]
    if not all(isinstance(n, int) and 0 <= n < 2**48 for n in (start, stop, *shape)):
        raise ValueError(f"sizes of {name!r} that are no counts")
    if entry["dtype"] not in KINDS:
        raise ValueError(f"type {entry['dtype']!r} of {name!r}")
    if stop - start != math.prod(shape) * KINDS[entry["dtype"]].itemsize:
        raise ValueError(f"{stop - start} bytes for {name!r} of shape {shape}")
    return start, stop, name


def _no_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if len(set(keys)) != len(keys):
        raise ValueError("a key twice")
    return dict(pairs)


def _no_constants(text: str) -> float:
    raise ValueError(f"the number {text}")


def _kind(name: str, tensor: Tensor) -> str:
    if tensor.dtype not in NAMES:
        raise ModelError(f"{name}: expected numbers, got {tensor.dtype}; leave it out of the state")
    return NAMES[tensor.dtype]


def _bytes(tensor: Tensor) -> bytes:
    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""

"""Digest of what a model computes: weights, layers, code and every setting of every module and wrapper.

The digest is a key of caches: two models that compute the same may have two digests, two models that differ never have
the same. Every attribute of every module counts, because only the module knows which of them its `forward` reads. A
class with an attribute that does not count (such as the memory of a check) has a method `identity`, which returns
those that do.

Not covered: code outside the classes of the modules, such as a function of another file that `forward` calls.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import json
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import PurePath
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from seawall.split_record import SPLIT_ATTRIBUTE

IdentityTree = None | bool | int | str | list["IdentityTree"]
"""The value that is digested: JSON without floats."""

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_GENERATED = ("__repr__", "__eq__", "__hash__")
"""Methods that dataclasses generate; no forward pass depends on them."""
_OWN = frozenset(vars(nn.Module())) | {SPLIT_ATTRIBUTE}
"""Attributes of every module: tensors, submodules and hooks are read by name, the split of the training is ignored."""


@dataclasses.dataclass(frozen=True)
class Identity:
    """The identity of a model.

    Args:
        digest: 64 hexadecimal digits; random at each call if the identity is incomplete.
        unknown: The attribute whose value has no digest, such as "net.act: function <lambda>"; "" if there is none.
    """

    digest: str
    unknown: str = ""


def identify(model: nn.Module) -> Identity:
    """Return the identity of a model; train and eval mode, device and memory layout do not count.

    Example:
        >>> identify(nn.ReLU()) == identify(nn.ReLU()), identify(nn.Dropout(0.1)) == identify(nn.Dropout(0.2))
        (True, False)
    """
    try:
        plain = _Reader().read(model, "model")
    except _UnknownValueError as bad:
        return Identity(secrets.token_hex(32), str(bad))
    except RecursionError:
        return Identity(secrets.token_hex(32), "model: a value that contains itself")
    return Identity(hashlib.sha256(json.dumps(plain).encode()).hexdigest())


def model_digest(model: nn.Module) -> str:
    """Return the SHA-256 of what a model computes; see `identify`."""
    return identify(model).digest


class _UnknownValueError(Exception):
    """A value without a digest."""


class _Reader:
    """Converts a value to nested lists; a module or object that occurs again becomes a reference."""

    def __init__(self) -> None:
        self._visited: dict[int, int] = {}

    def read(self, value: object, where: str) -> IdentityTree:
        if isinstance(value, enum.Enum):
            return ["enum", _qualified_name(type(value)), value.name]
        if value is None or isinstance(value, bool | int | str):
            return [type(value).__name__, value]
        if isinstance(value, float | complex | bytes | np.generic | torch.dtype | torch.device | torch.memory_format):
            return [type(value).__name__, repr(value)]
        if isinstance(value, PurePath):
            return ["path", str(value)]
        if isinstance(value, type):
            return ["type", _qualified_name(value)]
        if isinstance(value, Tensor):
            return _tensor(value, where)
        if isinstance(value, np.ndarray) and value.dtype != object:
            return ["array", str(value.dtype), list(value.shape), _sha256_text(np.ascontiguousarray(value).tobytes())]
        if isinstance(value, Mapping | Set | list | tuple):
            return self._container(value, where)
        return self._other(value, where)

    def _container(self, value: Mapping[object, object] | Set[object] | Sequence[object], where: str) -> IdentityTree:
        if isinstance(value, Mapping):
            pairs: list[IdentityTree] = [
                [self.read(key, where), self.read(item, f"{where}[{key!r}]")] for key, item in value.items()
            ]
            return ["mapping", *sorted(pairs, key=json.dumps)]
        if isinstance(value, Set):
            return ["set", *sorted((self.read(item, where) for item in value), key=json.dumps)]
        # tuples are lists: a setting that was read from a file is a list where the code wrote a tuple
        return ["list", *(self.read(item, f"{where}[{i}]") for i, item in enumerate(value))]

    def _other(self, value: object, where: str) -> IdentityTree:
        if isinstance(value, functools.partial):
            return ["partial", *(self.read(part, where) for part in (value.func, value.args, value.keywords))]
        if isinstance(value, FunctionType | BuiltinFunctionType | MethodType):
            return self._function(value, where)
        if not dataclasses.is_dataclass(value):
            if id(value) in self._visited:
                return ["again", self._visited[id(value)]]
            self._visited[id(value)] = len(self._visited)
        return self._module(value, where) if isinstance(value, nn.Module) else self._object(value, where)

    def _module(self, module: nn.Module, where: str) -> IdentityTree:
        parts: list[IdentityTree] = [
            [name, self.read(part, f"{where}.{name}")]
            for kind in (module._parameters, module._buffers, module._modules)
            for name, part in cast(Mapping[str, object], kind).items()
        ]
        hooks: list[IdentityTree] = [
            self.read(hook, f"{where}.{name}") for name in _HOOKS for hook in getattr(module, name).values()
        ]
        return ["module", *self._class(type(module), where), parts, hooks, self._attributes(module, _OWN, where)]

    def _object(self, value: object, where: str) -> IdentityTree:
        kind = type(value)
        whole = dataclasses.is_dataclass(value) or (
            hasattr(value, "__dict__")
            and kind.__reduce_ex__ is object.__reduce_ex__
            and kind.__reduce__ is object.__reduce__
            and kind.__getstate__ is object.__getstate__
            and not any(vars(layer).get("__slots__") for layer in kind.__mro__)
        )
        if not whole:  # state outside its attributes, such as that of a random number generator
            raise _UnknownValueError(f"{where}: {kind.__name__}")
        return ["object", *self._class(kind, where), self._attributes(value, frozenset(), where)]

    def _attributes(self, value: object, own: frozenset[str], where: str) -> IdentityTree:
        if "identity" in vars(type(value)):  # an inherited one does not include attributes of the subclass
            held = cast(Mapping[str, object], cast(Callable[[], object], value.identity)())  # type: ignore[attr-defined]
        elif dataclasses.is_dataclass(value) and not isinstance(value, nn.Module):
            held = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        else:
            held = {name: item for name, item in vars(value).items() if name not in own}
        return [[name, self.read(item, f"{where}.{name}")] for name, item in sorted(held.items())]

    def _class(self, kind: type, where: str) -> list[IdentityTree]:
        """Return the name and a digest of the attributes and methods of a class, except those of torch and seawall."""
        held: list[IdentityTree] = [
            [name, self._member(member, f"{where}.{name}")]
            for layer in kind.__mro__
            if not _is_library_class(layer)
            for name, member in sorted(vars(layer).items())
            if not name.startswith(("__", "_abc_")) or (isinstance(member, FunctionType) and name not in _GENERATED)
        ]
        # the module name of a script's class changes where it is imported: its code identifies it
        return [
            _qualified_name(kind) if _is_library_class(kind) else kind.__qualname__,
            _sha256_text(json.dumps(held).encode()),
        ]

    def _member(self, member: object, where: str) -> IdentityTree:
        for wrapped in ("__func__", "fget", "func"):  # static and class methods, properties, cached properties
            member = getattr(member, wrapped, member)
        if not isinstance(member, FunctionType):
            return self.read(member, where)
        cells = [cell.cell_contents for cell in member.__closure__ or ()]
        # the class itself is among them where the method calls super()
        return [_code(member), *(self.read(item, where) for item in cells if not isinstance(item, type))]

    def _function(self, value: FunctionType | BuiltinFunctionType | MethodType, where: str) -> IdentityTree:
        if isinstance(value, MethodType):
            return ["method", value.__name__, self.read(value.__self__, where)]
        for namespace in (sys.modules.get(str(value.__module__)), torch, functional):
            if getattr(namespace, value.__name__, None) is value:
                return ["function", value.__name__, _code(value) if isinstance(value, FunctionType) else str(namespace)]
        # a lambda or a closure: its captured variables have no digest
        raise _UnknownValueError(f"{where}: function {value.__qualname__}")


def _tensor(value: Tensor, where: str) -> IdentityTree:
    if value.layout != torch.strided or value.is_quantized or value.is_meta:
        raise _UnknownValueError(f"{where}: {value.layout} tensor on {value.device}")
    flat = value.detach().to("cpu").contiguous().reshape(-1)
    content = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
    return ["tensor", str(value.dtype), list(value.shape), _sha256_text(content)]


def _code(function: FunctionType) -> IdentityTree:
    return [_code_of(function.__code__), repr(function.__defaults__), repr(function.__kwdefaults__)]


def _code_of(code: CodeType) -> IdentityTree:
    consts: list[IdentityTree] = [
        _code_of(item) if isinstance(item, CodeType) else _const(item) for item in code.co_consts
    ]
    return [code.co_code.hex(), consts, [*code.co_names, *code.co_varnames, *code.co_freevars]]


def _const(value: object) -> IdentityTree:
    # the order of a frozen set differs between processes
    return repr(sorted(map(repr, value)) if isinstance(value, frozenset) else value)


def _is_library_class(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in ("torch", "builtins", "abc", "typing", "seawall")


def _qualified_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _sha256_text(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()

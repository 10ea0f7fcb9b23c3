"""One file adds a method: `@register` it, and its contract tests, CLI name and docs row follow."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, make_dataclass
from typing import TYPE_CHECKING, Literal, TypeVar, get_type_hints, overload

from pydantic import ConfigDict, TypeAdapter, ValidationError

from seawall.errors import SeawallError, UsageError, did_you_mean, first_error
from seawall.types import Architecture, Attack, Corruption, LabelNoise, Loss, Objective, Setting, Supervision, Wrapper

if TYPE_CHECKING:
    from seawall.attacks.losses import AttackLoss
    from seawall.attacks.suites import Suite
    from seawall.attacks.target import AttackGoal
    from seawall.data.raw_chips import ImageSource
    from seawall.keyed_transforms.blocks import KeyedTransform
    from seawall.labels.rules import LabelRule
    from seawall.labels.water_indices import WaterIndex
    from seawall.poisoning.detection import PoisonDetector
    from seawall.weight_faults.defense import WeightDefense
    from seawall.weight_faults.search import WeightFault

HOMES: Mapping[str, tuple[str, ...]] = {
    "attack": ("seawall.attacks",),
    "attack-loss": ("seawall.attacks",),
    "goal": ("seawall.attacks",),
    "suite": ("seawall.attacks",),
    "noise": ("seawall.label_noise",),
    "corruption": ("seawall.corruptions",),
    "keyed-transform": ("seawall.keyed_transforms",),
    "poison": ("seawall.poisoning",),
    "detector": ("seawall.poisoning",),
    "fault": ("seawall.weight_faults",),
    "weight-defense": ("seawall.weight_faults",),
    "supervision": ("seawall.supervision",),
    "loss": ("seawall.losses",),
    "objective": ("seawall.training.objectives",),
    "model": ("seawall.models",),
    "uncertainty": ("seawall.uncertainty",),
    "source": ("seawall.data.sources",),
    "water-index": ("seawall.labels",),
    "label-rule": ("seawall.labels",),
}
"""Where methods of a kind live; the modules there are imported on the first look-up."""

CONVERTED = ("attack", "suite", "label-rule")
"""Kinds whose constructors convert and check their settings in Python too."""
ANYTHING = ConfigDict(arbitrary_types_allowed=True)
TRAITS = frozenset(
    {
        "weak", "black-box", "min-norm", "stochastic", "targeted", "set", "clean-label", "peers", "general", "scale-invariant",
        "optical", "radar", "radiometric", "geometric", "joint", "no-gradient", "ignores-unseen", "unlabelled", "image-level",
    }
)  # fmt: skip
Method = TypeVar("Method", bound=type)


@dataclass(frozen=True)
class Entry:
    """A registered method: where it comes from and how to test it cheaply."""

    kind: str
    name: str
    make: type
    paper: str = ""
    smoke: Mapping[str, Setting] = field(default_factory=dict)
    traits: frozenset[str] = frozenset()

    @property
    def summary(self) -> str:
        """First sentence of the method's docstring."""
        return (self.make.__doc__ or "").strip().split("\n")[0]


_entries: dict[tuple[str, str], Entry] = {}
_loaded: set[str] = set()
_broken: dict[str, str] = {}


def register(
    kind: str, name: str, *, paper: str = "", smoke: Mapping[str, Setting] | None = None, traits: tuple[str, ...] = ()
) -> Callable[[Method], Method]:
    """Register a frozen dataclass as a method.

    Args:
        kind: One of `HOMES`.
        name: How recipes and the command line call it.
        paper: Where it comes from.
        smoke: Cheap settings for the contract suite.
        traits: Claims that choose contract checks; each declared trait is asserted true.

    Raises:
        UsageError: The kind or a trait is unknown, the name is taken, or the class is not frozen.
    """
    if kind not in HOMES:
        raise UsageError(f"register: unknown kind {kind!r}; {did_you_mean(kind, HOMES)}")
    if unknown := set(traits) - TRAITS:
        raise UsageError(f"register: unknown trait {sorted(unknown)[0]!r}; {did_you_mean(sorted(unknown)[0], TRAITS)}")

    def add(method: Method) -> Method:
        if not is_dataclass(method) or not method.__dataclass_params__.frozen:  # type: ignore[attr-defined]
            raise UsageError(
                f"register: expected a frozen dataclass for {name!r}, got {method!r}; add @dataclass(frozen=True) below @register"
            )
        known = _entries.get((kind, name))
        if known and (known.make.__module__, known.make.__qualname__) != (method.__module__, method.__qualname__):
            raise UsageError(f"register: {kind} {name!r} is taken by {known.make.__module__}; choose another name")
        if kind in CONVERTED:
            _convert_settings(method, kind, name)
        _entries[kind, name] = Entry(kind, name, method, paper, dict(smoke or {}), frozenset(traits))
        return method

    return add


def preset(
    kind: str, name: str, value: object, *, summary: str, paper: str = "", differs: str = "", smoke: Mapping[str, Setting] | None = None,
    traits: tuple[str, ...] = (),
) -> None:  # fmt: skip
    """Register a method with other default settings under a name of its own: `preset("attack", "js", APGD(loss="js"), ...)`.

    The preset takes every setting of the method. Error messages call it by the class variable `name`, where the method reads it.

    Args:
        kind: One of `HOMES`.
        name: How recipes and the command line call it.
        value: The method, a frozen dataclass with the settings of the preset.
        summary: One sentence that ends in a period.
        paper: Where it comes from; "" for no paper.
        differs: What differs from the paper; "" for nothing.
        smoke: Cheap settings for the contract suite.
        traits: Claims that choose contract checks; each declared trait is asserted true.

    Raises:
        UsageError: As `register`.
    """
    method = type(value)
    types = get_type_hints(method, include_extras=True)  # resolved: a field may be of a class in another module
    settings = [
        (f.name, types[f.name], _field_with(getattr(value, f.name)))
        for f in fields(value)  # type: ignore[arg-type]
        if f.init
    ]
    source = (paper and f"\n\nPaper: {paper}.") + (differs and f" Differs: {differs}.")
    text = f"{summary}\n\nSettings: those of `{method.__name__}`.{source}"
    made = make_dataclass(
        f"{method.__name__}[{name}]", settings, bases=(method,), frozen=True,
        namespace={"__doc__": text, "__module__": method.__module__, "name": name},
    )  # fmt: skip
    register(kind, name, paper=paper, smoke=smoke, traits=traits)(made)


def _field_with(default: object) -> object:
    """Return a dataclass field; a dict, which dataclasses refuse as a default, is given by a factory."""
    if isinstance(default, Mapping):
        return field(default_factory=lambda: default)
    return field(default=default)


def entries(kind: str) -> Iterator[Entry]:
    """Yield the methods of a kind by name."""
    _load(kind)
    yield from (_entries[key] for key in sorted(_entries) if key[0] == kind)


def find(kind: str, name: str) -> Entry:
    """Return one method.

    Raises:
        UsageError: No method of that kind has that name; the message guesses.
    """
    _load(kind)
    if (kind, name) not in _entries:
        names = [entry.name for entry in entries(kind)]
        lost = "".join(f" (the plug-in {plugin} did not load: {why})" for plugin, why in _broken.items())
        raise UsageError(f"{kind}: unknown name {name!r}; {did_you_mean(name, names)}{lost}")
    return _entries[kind, name]


def entry_of(kind: str, method: object) -> Entry | None:
    """Return the entry that a method was made from; None for one that is not registered."""
    return next((entry for entry in entries(kind) if entry.make is type(method)), None)


@overload
def build(kind: Literal["attack"], name: str, settings: Mapping[str, Setting] | None = None) -> Attack: ...
@overload
def build(kind: Literal["attack-loss"], name: str, settings: Mapping[str, Setting] | None = None) -> AttackLoss: ...
@overload
def build(kind: Literal["corruption"], name: str, settings: Mapping[str, Setting] | None = None) -> Corruption: ...
@overload
def build(kind: Literal["detector"], name: str, settings: Mapping[str, Setting] | None = None) -> PoisonDetector: ...
@overload
def build(kind: Literal["fault"], name: str, settings: Mapping[str, Setting] | None = None) -> WeightFault: ...
@overload
def build(kind: Literal["goal"], name: str, settings: Mapping[str, Setting] | None = None) -> AttackGoal: ...
@overload
def build(
    kind: Literal["keyed-transform"], name: str, settings: Mapping[str, Setting] | None = None
) -> KeyedTransform: ...
@overload
def build(kind: Literal["water-index"], name: str, settings: Mapping[str, Setting] | None = None) -> WaterIndex: ...
@overload
def build(kind: Literal["label-rule"], name: str, settings: Mapping[str, Setting] | None = None) -> LabelRule: ...
@overload
def build(kind: Literal["loss"], name: str, settings: Mapping[str, Setting] | None = None) -> Loss: ...
@overload
def build(kind: Literal["model"], name: str, settings: Mapping[str, Setting] | None = None) -> Architecture: ...
@overload
def build(kind: Literal["noise"], name: str, settings: Mapping[str, Setting] | None = None) -> LabelNoise: ...
@overload
def build(kind: Literal["objective"], name: str, settings: Mapping[str, Setting] | None = None) -> Objective: ...
@overload
def build(kind: Literal["source"], name: str, settings: Mapping[str, Setting] | None = None) -> ImageSource: ...
@overload
def build(kind: Literal["suite"], name: str, settings: Mapping[str, Setting] | None = None) -> Suite: ...
@overload
def build(kind: Literal["supervision"], name: str, settings: Mapping[str, Setting] | None = None) -> Supervision: ...
@overload
def build(kind: Literal["uncertainty"], name: str, settings: Mapping[str, Setting] | None = None) -> Wrapper: ...
@overload
def build(
    kind: Literal["weight-defense"], name: str, settings: Mapping[str, Setting] | None = None
) -> WeightDefense: ...
@overload
def build(kind: str, name: str, settings: Mapping[str, Setting] | None = None) -> object: ...
def build(kind: str, name: str, settings: Mapping[str, Setting] | None = None) -> object:
    """Make a method from plain settings, validated against its fields.

    Raises:
        UsageError: An unknown method or setting, or a value of the wrong type.
    """
    make = find(kind, name).make
    given = dict(settings or {})
    known = [f.name for f in fields(make) if f.init]
    for key in given:
        if key not in known:
            raise UsageError(f"{name}: unknown setting {key!r}; {did_you_mean(key, known)}")
    try:
        return TypeAdapter(make).validate_python(given)
    except ValidationError as bad:
        raise _refusal(kind, name, bad) from bad


def parse_settings(kind: str, text: str) -> tuple[str, dict[str, str]]:
    """Return name and settings of a text such as "seawall passes=30".

    Raises:
        UsageError: A word after the name is no `setting=value`, or there is no name.

    Example:
        >>> parse_settings("suite", "seawall passes=30")
        ('seawall', {'passes': '30'})
    """
    name, *words = text.split() or [""]
    settings: dict[str, str] = {}
    for word in words:
        key, found, value = word.partition("=")
        if not found or not value:
            raise UsageError(
                f"{kind}: expected 'name setting=value', got {text!r}; see `seawall methods --kind {kind}`"
            )
        settings[key] = value
    return name, settings


def _refusal(kind: str, name: str, bad: ValidationError, setting: str = "") -> UsageError:
    where = f"{kind} {name}.{setting}" if setting else f"{kind} {name}"  # one name may be of several kinds
    return UsageError(first_error(bad, where, advice=f"see `seawall methods --kind {kind} --name {name}`"))


def _convert_settings(method: type, kind: str, name: str) -> None:
    """Let the constructor of a method take what a recipe takes, such as `loss="js"`, and refuse what a recipe refuses."""
    plain = method.__init__  # type: ignore[misc]
    names = [f.name for f in fields(method) if f.init]

    @functools.cache
    def adapters() -> dict[str, TypeAdapter[object]]:
        hints = get_type_hints(method, include_extras=True)
        return {key: TypeAdapter(hints[key], config=ANYTHING) for key in names}

    @functools.wraps(plain)
    def init(self: object, *args: object, **settings: object) -> None:
        given = dict(zip(names, args, strict=False)) | settings
        if len(args) <= len(names) and set(settings) <= set(names[len(args) :]):
            plain(self, **{key: convert(key, value) for key, value in given.items()})
        else:
            plain(self, *args, **settings)  # Python's own message for an argument that is no field

    def convert(key: str, value: object) -> object:
        try:
            return adapters()[key].validate_python(value)
        except ValidationError as bad:
            raise _refusal(kind, name, bad, key) from bad

    method.__init__ = init  # type: ignore[misc]


def broken_plugins() -> Mapping[str, str]:
    """Return the entry points that could not be loaded, with the reason; the other methods work without them."""
    _load_plugins()
    return dict(_broken)


def _load(kind: str) -> None:
    """Import the modules of a kind and every plug-in.

    Raises:
        UsageError: The kind is unknown, or one of this package's own modules does not import: again at each call.
    """
    if kind not in HOMES:
        raise UsageError(f"registry: unknown kind {kind!r}; {did_you_mean(kind, HOMES)}")
    for home in HOMES[kind]:
        if home not in _loaded and _exists(home):
            package = importlib.import_module(home)
            for found in pkgutil.iter_modules(getattr(package, "__path__", [])):
                _import(f"{home}.{found.name}")
        _loaded.add(home)
    _load_plugins()


def _exists(home: str) -> bool:
    return importlib.util.find_spec(home) is not None


def _import(module: str) -> None:
    try:
        importlib.import_module(module)
    except SeawallError:
        raise
    except Exception as bad:  # whatever a dropped-in file does wrong, its name must be in the message
        spec = importlib.util.find_spec(module)
        where = spec.origin if spec and spec.origin else module
        raise UsageError(
            f"{where}: expected a module that can be imported, got {type(bad).__name__}: {bad}; mend or remove the file"
        ) from bad


def _load_plugins() -> None:
    if "plugins" in _loaded:
        return
    _loaded.add("plugins")
    for point in importlib.metadata.entry_points(group="seawall.methods"):
        try:
            point.load()
        except Exception as bad:  # another package's fault must not take this one's methods away
            _broken[point.value] = f"{type(bad).__name__}: {bad}"

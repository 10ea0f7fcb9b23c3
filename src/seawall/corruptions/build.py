"""Corruptions by name with the properties of the chips, and several of them in physical order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from typing import Annotated, ClassVar, cast, final, get_args

from pydantic import PlainValidator

from seawall.chip_context import CONTEXT_FIELDS, ChipContext, ContextField, build_with_context
from seawall.corruptions.per_source import PerSource, on_each_source
from seawall.corruptions.severity import check_severity
from seawall.errors import UsageError
from seawall.registry import entries, entry_of, find, parse_settings, register
from seawall.rng import Keys
from seawall.types import Batch, Corruption, Setting, Stage

STAGES: tuple[Stage, ...] = get_args(Stage)
PHYSICAL_ORDER = (
    *("turbid-water", "green-water", "wet-soil", "snow", "ice", "wet-snow", "incidence-angle", "wind"),
    *("low-sun", "glint"),
    *("haze", "cirrus", "clouds"),
    *("mtf", "defocus", "jitter", "misregistration"),
    *("gain", "offset", "stripes", "shot-noise", "saturation"),
    *("speckle", "interference", "thermal-noise", "radar-gain"),
    *("coarse-grid", "quantization", "jpeg2000", "forgotten-offset", "missing-band", "geolocation"),
    *("missing-source", "border-noise", "nodata-wedge", "shift", "rotation", "lens", "elastic", "transparency"),
)
"""Order within the stages, such as noise before saturation; a corruption that is not named comes last in its stage."""


def as_members(value: object) -> tuple[Corruption, ...]:
    """Return the corruptions of a composition.

    Raises:
        UsageError: They are not corruptions; text is read where the chips are known, by `build_corruption`.
    """
    given = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else ()
    found = tuple(one for one in given if isinstance(one, Corruption))
    if not found or len(found) != len(given):
        raise UsageError(
            f'composition.members: expected corruptions, got {value!r}; with `build_corruption`, text such as "haze + shot-noise" will do'
        )
    return found


def registered_name(corruption: Corruption) -> str:
    """Return the name that a corruption is registered under; that of its class where it is not."""
    one = corruption.first if isinstance(corruption, PerSource) else corruption
    entry = entry_of("corruption", one)
    return type(one).__name__ if entry is None else entry.name


@register("corruption", "composition", smoke={"members": "haze + shot-noise"}, traits=("optical", "radiometric"))
@final
@dataclass(frozen=True)
class Composition:
    """Several corruptions at one severity, from the scene over the atmosphere to the product.

    The order of `members` means nothing: each acts at its stage, those of one stage in `PHYSICAL_ORDER`.
    Quantity: the severity that all members have. Label, seen and valid change as the members change them.

    Args:
        members: Corruptions; in a recipe or on the command line, text such as "haze + shot-noise worst=4".
    """

    members: Annotated[tuple[Corruption, ...], PlainValidator(as_members)]

    quantity: ClassVar[str] = "severity of every member"
    unit: ClassVar[str] = ""
    stage: ClassVar[Stage] = "scene"

    def __post_init__(self) -> None:
        kinds = [registered_name(member) for member in self.members]
        if len(set(kinds)) < len(kinds) or any(isinstance(member, Composition) for member in self.members):
            raise UsageError(
                f"composition.members: expected different single corruptions, got {' + '.join(kinds)}; name each once"
            )

    def ordered(self) -> tuple[Corruption, ...]:
        """Return the members in physical order."""

        def place(one: Corruption) -> tuple[int, int, str]:
            name = registered_name(one)
            rank = PHYSICAL_ORDER.index(name) if name in PHYSICAL_ORDER else len(PHYSICAL_ORDER)
            return STAGES.index(one.stage), rank, name

        return tuple(sorted(self.members, key=place))

    def level(self, severity: float) -> float:
        """Return the severity."""
        return check_severity("composition", severity)

    def __call__(self, batch: Batch, severity: float, keys: Keys) -> Batch:
        """Return the batch after all members."""
        self.level(severity)
        for member in self.ordered():
            batch = member(batch, severity, keys)
        return batch


def build_corruption(name: str, settings: Mapping[str, Setting], context: ChipContext) -> Corruption:
    """Build a registered corruption with the properties of the chips.

    Args:
        name: Registered name.
        settings: Its settings; those of `chip_context.CONTEXT_FIELDS` that are left out come from the context. `source` names the
            source that it is for, where the chips have several; else it acts on each that it is of.
        context: The chips.

    Raises:
        UsageError: There is no such corruption, it is of another sensor or needs a band that the chips lack, or a
            setting is wrong.
    """
    own: dict[str, ContextField] = {"members": lambda context, given: _members(given, context)}
    entry = find("corruption", name)
    if (
        "joint" in entry.traits or entry.make is Composition
    ):  # about all sources, or of corruptions that are each built so
        return cast(Corruption, build_with_context("corruption", name, settings, context, own))
    rest = {key: value for key, value in settings.items() if key != "source"}

    def build(chips: ChipContext) -> Corruption:
        return cast(Corruption, build_with_context("corruption", name, rest, chips))

    return on_each_source(build, context, only=str(settings.get("source", "")), together="geometric" in entry.traits)


def parse_corruption(text: str, context: ChipContext) -> Corruption:
    """Read a corruption from text such as "haze worst=0.4", or several joined by " + ".

    Raises:
        UsageError: As `build_corruption`, or the text names nothing.

    Example:
        >>> chips = ChipContext(10.0, ("B03", "B08"), "reflectance")
        >>> parse_corruption("haze worst=0.4", chips).level(0.5)
        0.2
    """
    members = [parse_settings("corruption", part) for part in _parts(text)]
    built = [build_corruption(name, settings, context) for name, settings in members]
    return built[0] if len(built) == 1 else Composition(tuple(built))


def corruption_name(text: str) -> str:
    """Return the text of a corruption or of several in one spelling: registered names with their settings.

    Example:
        >>> corruption_name("  haze  worst=0.4 +  shot-noise")
        'haze worst=0.4 + shot-noise'
    """
    members = [parse_settings("corruption", part) for part in _parts(text)]
    return " + ".join(" ".join([name, *(f"{k}={v}" for k, v in settings.items())]) for name, settings in members)


def fitting_corruptions(context: ChipContext) -> tuple[dict[str, Corruption], dict[str, str]]:
    """Return every registered corruption that fits the chips, and the reason for each that does not, by name.

    A corruption with a setting that has no default, such as a composition, is neither.
    """
    fit: dict[str, Corruption] = {}
    refused: dict[str, str] = {}
    for entry in entries("corruption"):
        if any(f.init and f.default is MISSING and f.default_factory is MISSING for f in _own_fields(entry.make)):
            continue
        try:
            fit[entry.name] = build_corruption(entry.name, {}, context)
        except UsageError as bad:
            refused[entry.name] = str(bad).removeprefix(f"{entry.name}: ")
    return fit, refused


def _own_fields(method: type) -> list[Field[object]]:
    """Return the fields of a corruption that the chips do not set."""
    return [f for f in fields(method) if f.name not in CONTEXT_FIELDS]


def _parts(text: str) -> list[str]:
    return text.split(" + ")


def _members(given: Setting, context: ChipContext) -> object:
    if isinstance(given, str):
        return [parse_corruption(part, context) for part in _parts(given)]
    if isinstance(given, Sequence) and all(isinstance(one, str) for one in given):
        return [parse_corruption(str(one), context) for one in given]
    return given

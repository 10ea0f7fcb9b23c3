"""The sections of a recipe, each with the ranges of its keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, field_validator, model_validator

from seawall.bands import parse_sources
from seawall.keyed_transforms.keys import check_key_source
from seawall.records import SEVERITIES, WAYS
from seawall.split_record import SplitSettings
from seawall.training.configuration import Masking, Training
from seawall.training.round_settings import PaulGanju, RelabelLoop


class RecipeSection(BaseModel):
    """A section of a recipe: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def _checked_training(settings: dict[str, Any]) -> dict[str, Any]:
    # They stay as they are written: the id is a hash of that, and a new default must not change it.
    TypeAdapter(Training).validate_python(settings)
    return settings


TrainingSettings = Annotated[dict[str, Any], AfterValidator(_checked_training)]
"""Some fields of `seawall.training.configuration.Training`."""

Called = Annotated[str, Field(pattern=r"^([a-z0-9][a-z0-9._+-]*)?$")]
"""Name in rows and folders; "" for the method's own."""


class MethodSection(RecipeSection):
    """A registered method and its settings, as `{name = "pgd", settings = {steps = 20}}`."""

    name: str
    settings: dict[str, Any] = Field(default_factory=dict)


class BaselineSection(MethodSection):
    """A model beside the network, which needs no training by gradients: a threshold, or a model that is fitted to the training chips.

    Args:
        called: Name in the rows, needed where two baselines would have one; its index and rule, or its registered name, if empty.
    """

    called: Called = ""


class ModelSection(MethodSection):
    """A further model, trained on the same labels as the recipe's and measured on clean images beside it.

    Args:
        called: Name in rows and folders, needed where one model is there with two settings; its own if empty.
        training: Fields of `seawall.training.configuration.Training` that differ from the recipe's.
        objective: What is minimized instead of the recipe's objective.
        balance: How patches are drawn instead of the recipe's way.
    """

    called: Called = ""
    training: TrainingSettings = Field(default_factory=dict)
    objective: MethodSection | None = None
    balance: Literal["area", "classes"] | None = None


class CostSection(RecipeSection):
    """What every model of the run costs: parameters, multiply-accumulates, seconds per megapixel.

    Args:
        ways: Ways to run the networks: contiguous, channels-last, onnx, openvino.
        size: Side of the timed image in pixels.
        repeats: Times that every model is timed each way; the models take turns, and the median counts.
    """

    ways: tuple[str, ...] = Field(tuple(WAYS), min_length=1)
    size: int = Field(512, ge=64, le=8192)
    repeats: int = Field(5, ge=1, le=1000)

    @field_validator("ways")
    @classmethod
    def _check_ways(cls, ways: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [way for way in ways if way not in WAYS]:
            raise ValueError(f"some of {', '.join(WAYS)}, but {unknown[0]!r} is none")
        return ways


class DataSection(RecipeSection):
    """Where the chips come from.

    Args:
        source: "simulated", a chip folder, or anything that `seawall curate` reads. `$NAME` is taken
            from the environment.
        kind: A registered source, with settings of its own after its name; "auto" detects it, and "chips" is a chip folder.
        select: Keep source ids that start with this.
        sensor: "s1" or "s2"; several, as "s1,s1.pre,s2", are the sources of each chip.
        unpaired: "fail" for chips that lack the image of a source, "keep" to take them without it.
        bands: Band ids to keep, in this order; empty keeps all.
        labels: "truth" takes the source's labels, "cover" the full land cover of simulated scenes, and a rule
            such as "ndwi >= -0.25" labels every image by an index.
        names: Band names in file order, where files name none.
        group: Regular expression on file names; its first bracket is the event or place.
        gsd_m: Meters per pixel, where files have no georeference.
        gain: Reflectance or dB per stored number, where files do not say it.
        offset: What is added after the gain, in physical units.
        label_map: What raw label values mean, as {"-1" = 255}; 255 does not count.
        count: Simulated scenes.
        size: Side of a simulated scene in pixels.
        frame: Side of the larger simulated scene that each is cut out of, at a random place; 0 simulates each alone,
            which gives more water than a part of a large scene.
        clouds: Simulated scenes have clouds and their shadows.
    """

    source: str = "simulated"
    kind: str = "auto"
    select: str = ""
    sensor: str = "s2"
    unpaired: Literal["fail", "keep"] = "fail"
    bands: tuple[str, ...] = ()
    labels: str = "truth"
    names: tuple[str, ...] = ()
    group: str = ""
    gsd_m: float | None = Field(None, gt=0)
    gain: float | None = None
    offset: float | None = None
    label_map: dict[int, int] = Field(default_factory=dict)
    count: int = Field(24, ge=3, le=100_000)
    size: int = Field(256, ge=64, le=8192)
    frame: int = Field(0, ge=0, le=16384)
    clouds: bool = True

    @field_validator("sensor")
    @classmethod
    def _check_sensor(cls, sensor: str) -> str:
        return ",".join(parse_sources(sensor))

    @property
    def deciding(self) -> dict[str, Any]:
        """The keys as plain values; one that came later is left out where it has its default, so that ids stay."""
        tree = self.model_dump(mode="json")
        return tree if self.unpaired != "fail" else {key: value for key, value in tree.items() if key != "unpaired"}


class SplitSection(RecipeSection):
    """How the chips are split; groups never cross."""

    by: Literal["group", "block"] = SplitSettings.by
    block_m: float = SplitSettings.block_m
    val: float = Field(SplitSettings.val, ge=0)
    test: float = Field(SplitSettings.test, ge=0)

    @model_validator(mode="after")
    def _check_settings(self) -> SplitSection:
        TypeAdapter(SplitSettings).validate_python(self.model_dump())
        return self


class RobustnessSection(RecipeSection):
    """A threat that the validation chips are attacked within after every epoch.

    Args:
        threat: Threat model, as text with its unit.
        steps: Steps of PGD.
    """

    threat: str
    steps: int = Field(10, ge=2, le=1000)


class PretrainingSection(RecipeSection):
    """Training on another task before that of the network.

    Args:
        task: "patch-labels" trains a U-Net's encoder on one label per patch; "reconstruction" trains any network without labels
            to fill in what is hidden of an image, on all training chips, labelled or not.
        masking: Settings of `seawall.training.configuration.Masking`: block, share, bands.
        objective: What is minimized on patch labels; by default that of the training.
        settings: Training settings that differ from those of the training, such as {epochs = 10}.
        of: Class that patches are told apart by; "" is water, or without it the last one.
        share: Share of the valid pixels of that class above which a patch is of the second kind.
    """

    task: Literal["patch-labels", "reconstruction"] = "patch-labels"
    masking: dict[str, Any] = Field(default_factory=dict)
    objective: MethodSection | None = None
    settings: TrainingSettings = Field(default_factory=dict)
    of: str = ""
    share: float = Field(0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _check_task(self) -> PretrainingSection:
        if self.task == "patch-labels" and self.masking:
            raise ValueError('no masking for patch-labels, which hides nothing; set task = "reconstruction"')
        if self.task == "reconstruction":
            TypeAdapter(Masking).validate_python(self.masking)
            usual = {key: field.default for key, field in type(self).model_fields.items()}
            if given := [key for key in ("objective", "of", "share") if getattr(self, key) != usual[key]]:
                raise ValueError(f"no {given[0]} for reconstruction, which reads no label; remove it")
        return self


class RoundsSection(RecipeSection):
    """A training in rounds, each on labels that follow from the round before.

    Args:
        name: "paul-ganju" gives chips without labels pseudo-labels, "relabel-loop" begins with image-level labels.
        settings: Settings of `seawall.training.round_settings.PaulGanju` or `RelabelLoop`.
    """

    name: Literal["paul-ganju", "relabel-loop"]
    settings: dict[str, Any] = Field(default_factory=dict)

    @property
    def method(self) -> PaulGanju | RelabelLoop:
        """The method with its settings."""
        return ROUND_SETTINGS[self.name].validate_python(self.settings)

    @model_validator(mode="after")
    def _check_settings(self) -> RoundsSection:
        _checked_training(dict(self.method.settings))
        return self


ROUND_SETTINGS: Mapping[str, TypeAdapter[PaulGanju] | TypeAdapter[RelabelLoop]] = {
    PaulGanju.name: TypeAdapter(PaulGanju),
    RelabelLoop.name: TypeAdapter(RelabelLoop),
}
"""What reads the settings of each kind of rounds."""


class TrainingSection(RecipeSection):
    """How the network is trained.

    Args:
        objective: What is minimized; its loss is one of its settings, as `{loss = "ce + dice"}`.
        supervision: Which part of the training labels is known, one kind after the other, as
            `[{name = "chips", settings = {share = 0.1}}, {name = "points"}]`; all of it if empty.
        settings: Fields of `seawall.training.configuration.Training`: epochs, patch, batch, lr and so on.
        augment: "d4" shows every patch in one of its eight orientations.
        balance: "classes" centers the patches on every class alike, "area" draws them evenly.
        devices: Processes that share every batch, one per device; batch norms see each process's share only.
        start: Weights file to start from, of the same model, bands and classes; its normalization is kept. "" starts
            from random weights.
        adapt_bands: The weights to start from are of other bands, such as optical ones for radar: the kernels of the first
            convolution are averaged over their bands, and the normalization is that of the chips.
        pretraining: Train the encoder on one label per patch first, or the network without labels.
        unlabelled: Patches of chips without labels for each labelled one, for objectives that learn from them.
        members: Further networks trained alike with other random numbers, as members of an ensemble: unet.member-1 and so on. They have
            no rows of their own.
        rounds: Train in rounds, each on labels that follow from the predictions of the one before.
        robustness: Attack the validation chips too; the default monitor is then the IoU after PGD.
    """

    objective: MethodSection = MethodSection(name="supervised")
    supervision: tuple[MethodSection, ...] = ()
    settings: TrainingSettings = Field(default_factory=dict)
    augment: Literal["none", "d4"] = "d4"
    balance: Literal["area", "classes"] = "area"
    devices: int = Field(1, ge=1, le=1024)
    start: str = ""
    adapt_bands: bool = False
    pretraining: PretrainingSection | None = None
    unlabelled: int = Field(0, ge=0, le=64)
    members: int = Field(0, ge=0, le=64)
    rounds: RoundsSection | None = None
    robustness: RobustnessSection | None = None

    @model_validator(mode="after")
    def _check_parts(self) -> TrainingSection:
        parts = {"pretraining": self.pretraining, "unlabelled": self.unlabelled, "rounds": self.rounds}
        given = [key for key, value in parts.items() if value]
        if given and self.devices > 1:
            raise ValueError(f"one process for a training with {given[0]}, got {self.devices}; set devices = 1")
        if self.adapt_bands and not self.start:
            raise ValueError("start beside adapt_bands, which is about its bands; name the weights, or remove it")
        if self.rounds is not None and (self.pretraining is not None or self.start):
            other = "pretraining" if self.pretraining is not None else "start"
            raise ValueError(f"no {other} beside rounds, which start their own trainings; put it into another recipe")
        return self


REFERENCE = "plain"
"""Name of the reference network in rows and folders."""


class ReferenceSection(RecipeSection):
    """A second network, which the recipe's is compared with: the same model and split, trained by another objective.

    It is attacked as the recipe's network is, the attacks on it are given to the recipe's network as well, and threshold
    models among the baselines are measured by their exact worst case.

    Args:
        objective: What is minimized.
        settings: Fields of `seawall.training.configuration.Training` that differ from the recipe's.
        weights: Weights file of a network that is there already, trained on the same split; it is taken instead.
    """

    objective: MethodSection = MethodSection(name="supervised")
    settings: TrainingSettings = Field(default_factory=dict)
    weights: str = ""


OTHER_KEY = "other-key"
"""Name of the surrogate of a keyed network in rows and folders: trained alike with another key."""


class KeyedSection(RecipeSection):
    """A keyed transform before the network, and what it is measured against; never one without the other.

    Two more networks are trained alike: one without the transform, and one with another key, as an adversary without
    the key would train it.

    Args:
        transform: Registered keyed transform.
        settings: Its settings, such as `{block = 4}`.
        key: File of the key, or "env:NAME"; never the key itself.
        range: Data values that become 0 and 1 before the transform; by default those of the unit.
        threats: Threats of the adaptive attacks, each with its unit.
        steps: Steps of PGD.
        queries: Forward passes per chip of the attack without gradients.
        guesses: Keys that the adversary with the weights and without the key guesses at once.
        wrong_keys: Keys that the network is tried with on clean images.
    """

    transform: str
    settings: dict[str, Any] = Field(default_factory=dict)
    key: str
    range: tuple[float, float] | None = None
    threats: tuple[str, ...] = Field(min_length=1)
    steps: int = Field(20, ge=1, le=1000)
    queries: int = Field(200, ge=1, le=100_000)
    guesses: int = Field(8, ge=1, le=100)
    wrong_keys: int = Field(5, ge=1, le=100)

    @field_validator("key")
    @classmethod
    def _check_source(cls, key: str) -> str:
        return check_key_source(key)


class AttackSection(RecipeSection):
    """An attack or a suite against one or more threats, each with its unit: "linf 1% reflectance".

    Args:
        name: Registered name.
        called: Name of an attack in the rows, needed where one attack is run with two settings; its own if empty.
            The members of a suite are named by the suite.
    """

    name: str
    called: str = ""
    settings: dict[str, Any] = Field(default_factory=dict)
    threats: tuple[str, ...] = Field(min_length=1)


class CorruptionSection(RecipeSection):
    """A natural perturbation of the test images, measured at each severity.

    Args:
        name: Registered corruption.
        called: Name in the rows, needed where one corruption is measured with two settings; its own if empty.
        settings: Its settings; bands, unit, pixel size and classes come from the chips.
        severities: Above 0 and at most 1.
    """

    name: str
    called: str = ""
    settings: dict[str, Any] = Field(default_factory=dict)
    severities: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(SEVERITIES, min_length=1)

    @field_validator("severities")
    @classmethod
    def _check_distinct(cls, severities: tuple[float, ...]) -> tuple[float, ...]:
        if twice := [one for one in severities if severities.count(one) > 1]:
            raise ValueError(f"each severity once, but {twice[0]:g} twice; leave one out")
        return severities


class SensitivitySection(RecipeSection):
    """Sensitivity curves of the networks on the test part: how far corruptions move their features.

    Args:
        corruptions: Texts such as "haze worst=0.4"; empty for those that sensitivity-augmentation trains on.
        levels: Severities of equal harm per corruption.
        layer: Module whose features are compared; "" for the last one of the coarsest grid.
    """

    corruptions: tuple[str, ...] = ()
    levels: int = Field(5, ge=1, le=50)
    layer: str = ""


class FaultSection(RecipeSection):
    """Flipped bits in the 8-bit weights of the network, until the IoU on the test chips is halved.

    Args:
        name: Registered fault.
        called: Name in the report, needed where one fault is there with two settings; its own if empty.
        most: Flips after which it stops.
        images: Patches of the training part that the bits are chosen on.
        defenses: Such as "clipping group=64"; the fault is measured without one and with each.
    """

    name: str
    called: str = ""
    settings: dict[str, Any] = Field(default_factory=dict)
    most: int = Field(100, ge=1, le=100_000)
    images: int = Field(8, ge=1, le=1024)
    defenses: tuple[str, ...] = ()


class UncertaintySection(MethodSection):
    """An estimator of uncertainty around each network that is trained on the recipe's labels, clean or noisy.

    Args:
        name: Registered estimator.
        settings: Its settings; an ensemble takes the networks of `training.members` or `training.settings.snapshots`.
        temperature: "global", "class" or "local" calibrates the probabilities on the validation part, "none" leaves them.
    """

    temperature: Literal["none", "global", "class", "local"] = "none"

    @property
    def called(self) -> str:
        """Name of the estimator in rows, as in unet+tta."""
        return self.name if self.temperature == "none" else f"{self.name}, {self.temperature} temperature"


class NoiseSection(RecipeSection):
    """Label noise put on the training part; one more model is trained per rate.

    Args:
        name: Registered noise.
        called: Name of the noise in the networks' names, needed where one noise is run with two settings; its own if empty.
        settings: Its settings without the rate.
        rates: Values of `vary`, one model each; 0 trains a control on labels that the noise leaves as they are.
        vary: The setting that takes the rates.
        objective: Train through the noise with this objective instead of the recipe's.
    """

    name: str
    called: str = Field("", pattern=r"^([a-z0-9][a-z0-9._-]*)?$")
    settings: dict[str, Any] = Field(default_factory=dict)
    rates: tuple[float, ...] = Field(min_length=1)
    vary: str = "budget"
    objective: MethodSection | None = None

    @model_validator(mode="after")
    def _check_rate(self) -> NoiseSection:
        if self.vary in self.settings:
            raise ValueError(f"{self.vary} in `rates` alone; a setting of that name would undo them")
        return self

    def at(self, rate: float) -> dict[str, Any]:
        """Return the noise's settings at one rate."""
        return {**self.settings, self.vary: rate}

    @property
    def way(self) -> str:
        """Suffix of the networks' names: the loss if that alone differs from the recipe's objective, else the objective."""
        if self.objective is None:
            return ""
        loss = self.objective.settings.get("loss")
        if self.objective.name == "supervised" and isinstance(loss, str):
            return loss.replace(" ", "")
        return self.objective.name


class SceneSection(RecipeSection):
    """A whole scene to map: a raster, or a simulated one of `size` pixels."""

    source: str = "simulated"
    size: int = Field(1024, ge=128, le=20_000)

"""What the files of a run folder say, as the report reads them."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field

from seawall.report.formatting import DASH, count_text, number_text, percent_text


class RunFile(BaseModel):
    """The keys that the report reads of a file; a key that is not declared cannot be read by mistake."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class DataFacts(RunFile):
    """Facts about the chips and their split, as `seawall.pipeline.provenance.data_facts` writes them."""

    chips: int = 0
    unit: str = ""
    bands: tuple[str, ...] = ()
    gsd_m: float | None = None
    classes: tuple[str, ...] = ()
    noise: Mapping[str, float] = Field(default_factory=dict)
    licence: str = ""
    groups: Mapping[str, tuple[str, ...]] = Field(default_factory=dict)
    chips_per_part: Mapping[str, int] = Field(default_factory=dict)
    water_share: Mapping[str, float | None] = Field(default_factory=dict)
    how: str = ""
    warnings: tuple[str, ...] = ()
    flags: Mapping[str, int] = Field(default_factory=dict)


class NoiseFacts(RunFile):
    """The label noise that one network was trained with.

    Args:
        model: The network that was trained on the labels without noise.
        noise: Name of the label noise.
        rate: The value that was asked for: a share of pixels, or another setting that the sweep varies.
        objective: Loss or objective of the training on noisy labels; "" for the recipe's own.
        changed_share: Share of the training pixels with a known label whose label the noise changed.
    """

    model: str = ""
    noise: str = ""
    rate: float | None = None
    objective: str = ""
    changed_share: float | None = None

    @property
    def kind(self) -> str:
        """Noise and objective; networks of one kind make one curve over the share that was changed."""
        return f"{self.noise}, by {self.objective}" if self.objective else self.noise

    @property
    def rate_text(self) -> str:
        """What was asked for: a share as a percentage, any other setting as a number."""
        if self.rate is None:
            return DASH
        return percent_text(self.rate) if self.rate <= 1 else number_text(self.rate)

    @property
    def changed_text(self) -> str:
        """The share that was changed, as a percentage."""
        return percent_text(self.changed_share)

    @property
    def label(self) -> str:
        """Noise, what was asked for, and what was changed.

        Example:
            >>> NoiseFacts(noise="thirds", rate=0.1, changed_share=0.02).label
            'thirds 10\u202f% (2\u202f% changed)'
        """
        changed = "" if self.changed_share is None else f" ({self.changed_text} changed)"
        objective = f", by {self.objective}" if self.objective else ""
        return f"{self.noise} {self.rate_text}{changed}{objective}"


class SupervisionFacts(RunFile):
    """How much of the training labels one network knows.

    Args:
        pixels: Pixels with a known label.
        of_pixels: Pixels with a label in the training part.
        chips: Training chips with a known label.
        of_chips: Training chips.
    """

    pixels: int = 0
    of_pixels: int = 0
    chips: int = 0
    of_chips: int = 0

    @property
    def text(self) -> str:
        """The known pixels and chips.

        Example:
            >>> SupervisionFacts(pixels=12, of_pixels=6000, chips=3, of_chips=6).text
            '12 pixels (0.2\u202f%) of 3 of 6 chips'
        """
        share = percent_text(self.pixels / self.of_pixels if self.of_pixels else None)
        return f"{count_text(self.pixels)} pixels ({share}) of {count_text(self.chips)} of {count_text(self.of_chips)} chips"


class EstimatorFacts(RunFile):
    """The estimator of uncertainty around a network.

    Args:
        model: The network.
        estimator: Registered name of the estimator.
    """

    model: str = ""
    estimator: str = ""


class HardeningFacts(RunFile):
    """A hardened network and the plain one beside it, as `seawall.pipeline.reference.hardening_facts` writes them.

    Args:
        before: Name of the plain network in the rows.
        after: Name of the hardened one.
        cpu_minutes: CPU time of the training of each; None where it was not recorded.
        overfitting_epochs: Epochs, counted from 0, after which several steps left less than half of what one step left.
        kept_epoch: The epoch whose weights were kept.
    """

    before: str = ""
    after: str = ""
    cpu_minutes: Mapping[str, float | None] = Field(default_factory=dict)
    overfitting_epochs: tuple[int, ...] = ()
    kept_epoch: int | None = None


class KeyedRunFacts(RunFile):
    """A network behind a keyed transform, as `seawall.pipeline.keyed.keyed_facts` writes it.

    Args:
        network: Name of the network in the rows.
        plain: Name of the network without a transform.
        other_key: Name of the surrogate with another key.
        transform: Registered transform.
        block: Side of a block in pixels.
        differentiable: Whether the gradient through the transform is its own.
        threats: Threats of the adaptive attacks.
        guesses: Keys that are guessed at once.
        without_key: What stands in for the key, by the name of the network with that.
    """

    network: str = ""
    plain: str = ""
    other_key: str = ""
    transform: str = ""
    block: int = 0
    differentiable: bool = True
    threats: tuple[str, ...] = ()
    guesses: int = 0
    without_key: Mapping[str, str] = Field(default_factory=dict)


class RoundFacts(RunFile):
    """One round of a training in rounds, as `seawall.pipeline.rounds` writes it; what a kind of rounds does not have is None.

    Args:
        round: Its number; 0 is the training on the labels as they were.
        val: Best monitored figure.
        monitor: Its name.
        chips: Chips with an accepted pseudo-label.
        of_chips: Chips without labels.
        accepted: Accepted tiles.
        kept_tiles: Those that are left after tiles of land were thinned.
        known_share: Share of the class among the known labels.
        accepted_share: Its share among all accepted tiles.
        share: Its share among the labels that the round added or trained on.
        changed: Share of the labels that the network of the round changes.
        cpu_minutes: CPU time of its trainings.
        kept: Whether the weights of this round are those of the network.
    """

    round: int
    val: float | None = None
    monitor: str = ""
    chips: int | None = None
    of_chips: int | None = None
    accepted: int | None = None
    kept_tiles: int | None = None
    known_share: float | None = None
    accepted_share: float | None = None
    share: float | None = None
    changed: float | None = None
    cpu_minutes: float | None = None
    kept: bool = False


class RunFacts(RunFile):
    """The file facts.json: data, label noise, known labels, rounds, uncertainty, hardening, keyed transform, seconds and CPU seconds per stage, version.

    `corruption_baseline` is the baseline that corruption errors are relative to.
    """

    data: DataFacts = DataFacts()
    noises: Mapping[str, NoiseFacts] = Field(default_factory=dict)
    supervision: Mapping[str, SupervisionFacts] = Field(default_factory=dict)
    rounds: Mapping[str, tuple[RoundFacts, ...]] = Field(default_factory=dict)
    uncertainty: Mapping[str, EstimatorFacts] = Field(default_factory=dict)
    corruption_baseline: str = ""
    hardening: HardeningFacts = HardeningFacts()
    keyed: KeyedRunFacts = KeyedRunFacts()
    seconds: Mapping[str, float] = Field(default_factory=dict)
    cpu_seconds: Mapping[str, float] = Field(default_factory=dict)
    version: str = ""


COST_FIGURES = "costs.json"
"""File of what the models of a run cost."""


class CostFacts(RunFile):
    """What a model costs, as `seawall.pipeline.costs` writes it.

    Args:
        parameters: Trained numbers.
        macs_per_pixel: Multiply-accumulates per pixel; None for a model that is no network.
        reach: Radius of the receptive field in pixels; None without a bound.
        training_minutes: CPU-minutes of its training or fit.
        seconds: Median seconds per megapixel, by way.
        slowest: Largest of them, by way.
        failed: Why a way is not possible, by way.
    """

    parameters: int = 0
    macs_per_pixel: float | None = None
    reach: int | None = None
    training_minutes: float | None = None
    seconds: Mapping[str, float] = Field(default_factory=dict)
    slowest: Mapping[str, float] = Field(default_factory=dict)
    failed: Mapping[str, str] = Field(default_factory=dict)


class CostSettings(RunFile):
    """How the costs were measured."""

    ways: tuple[str, ...] = ()
    size: int = 0
    repeats: int = 0


class RunCosts(RunFile):
    """The file `COST_FIGURES`."""

    settings: CostSettings = CostSettings()
    models: Mapping[str, CostFacts] = Field(default_factory=dict)


FAULT_ROWS = "weight_faults.jsonl"
"""File of a run folder with a line per network, fault in the weights and defense."""


class WeightFaultFacts(RunFile):
    """Flipped weight bits of one network, until the IoU on held-out chips was halved: a line of `FAULT_ROWS`.

    Args:
        model: The network.
        fault: Name of the fault.
        defense: Name of the defense; "none" without one.
        seed: Seed of the fault.
        bits: Bits of all its 8-bit weights.
        layers: Layers with such weights.
        most: Flips after which the fault was stopped.
        flips_to_half: Flips until the IoU was at most half of that without flips; None where it never was.
        curve: (flips, pixels of the class in label and prediction, pixels in either) after every round; without flips first.
        flips: (layer, index, bit, integer before, integer after) of every bit in order.
        detected: Bits in groups whose checksum differed.
        seconds: CPU seconds that it took to choose the bits.
        refused: Why it was not measured; "" where it was.
    """

    model: str
    fault: str
    defense: str
    seed: int
    most: int
    bits: int = 0
    layers: int = 0
    flips_to_half: int | None = None
    curve: tuple[tuple[int, int, int], ...] = Field(((0, 0, 0),), min_length=1)
    flips: tuple[tuple[str, int, int, int, int], ...] = ()
    detected: int = 0
    seconds: float = 0.0
    refused: str = ""

    @property
    def iou(self) -> tuple[float, ...]:
        """IoU after every round, without flips first; 0 where neither label nor prediction has the class."""
        return tuple(both / either if either else 0.0 for _, both, either in self.curve)

    @property
    def detected_share(self) -> float | None:
        """Share of the flips that checksums noticed; None without flips."""
        return self.detected / len(self.flips) if self.flips else None

    @property
    def sign_share(self) -> float | None:
        """Share of the flips that flipped a sign bit; None without flips."""
        return sum(bit == 7 for _, _, bit, _, _ in self.flips) / len(self.flips) if self.flips else None


class AreaFacts(RunFile):
    """The area of a map with its interval, with the keys of `seawall.uncertainty.area.AreaEstimate`."""

    low_km2: float | None = None
    high_km2: float | None = None
    level: float = 0.9
    reason: str = ""
    corrected_km2: float | None = None
    stratified_km2: float | None = None
    scene_se_km2: float | None = None
    scenes: int = 0


class FamiliarityFacts(RunFile):
    """Whether a scene looks like those that the network knows, with the keys of `seawall.uncertainty.scene_statistics.Familiarity`."""

    p_value: float
    unusual: bool
    causes: tuple[str, ...] = ()


class SceneFacts(RunFile):
    """The result of a whole-scene map, with the keys of `seawall.inference.products.SceneResult`."""

    source: str = ""
    files: Mapping[str, str] = Field(default_factory=dict)
    classes: tuple[str, ...] = ()
    klass: str = "water"
    height: int = 0
    width: int = 0
    seen_share: float | None = None
    share: float | None = None
    area_km2: float | None = None
    expected_km2: float | None = None
    low_km2: float | None = None
    high_km2: float | None = None
    unsure_km2: float | None = None
    unsure_share: float | None = None
    class_km2: Mapping[str, float | None] = Field(default_factory=dict)
    statement: str = ""
    interval: AreaFacts | None = None
    familiarity: FamiliarityFacts | None = None
    flags: tuple[str, ...] = ()
    seconds: float = 0.0


class SceneTime(RunFile):
    """When the scene was acquired."""

    datetime: str | None = None


class SceneTruth(RunFile):
    """How a map compares with the known truth of its scene: scenes/<name>.truth.json."""

    klass: str
    iou: float | None = None
    precision: float | None = None
    recall: float | None = None
    true_km2: float | None = None
    mapped_km2: float | None = None
    expected_km2: float | None = None
    pixels: int = 0
    clear_iou: float | None = None
    clear_pixels: int = 0
    note: str = ""


class RiskFacts(RunFile):
    """A risk that a map controls, with the keys of `seawall.uncertainty.conformal.RiskControl`."""

    risk: str
    at: float | None = None
    scenes: int = 0
    needed: int | None = None
    empirical: float | None = None


class PromiseFacts(RunFile):
    """What a map promises, with the keys of `seawall.inference.guarantee.Guarantee.plain`."""

    digest: str = ""
    level: float = 0.9
    risks: tuple[RiskFacts, ...] = ()


class MappedScene(RunFile):
    """One mapped scene: the STAC item beside its GeoTIFFs, and its truth where that is known."""

    calibration: PromiseFacts = PromiseFacts()
    bbox: tuple[float, ...] = ()
    properties: SceneTime = SceneTime()
    result: SceneFacts = SceneFacts()
    truth: SceneTruth | None = None


class ExampleFacts(RunFile):
    """The facts of an example chip: examples/<name>.json."""

    chip: str = ""
    method: str = ""
    threat: str = ""
    model: str = ""
    largest_change: float | None = None
    preview_bands: tuple[str, ...] = ()
    severity: float | None = None
    level: float | None = None
    quantity: str = ""
    level_unit: str = ""


SENSITIVITY_FIGURES = "sensitivity.json"
"""File of the sensitivity curves, by the name of the network, in a run folder and in that of the verb."""


class SensitivityPointFacts(RunFile):
    """What a corruption does to the features at one severity, as `seawall.defenses.sensitivity.SensitivityPoint`."""

    severity: float
    level: float
    distance: float
    miou: float | None = None


class SensitivityCurveFacts(RunFile):
    """A measured curve with the physical quantity of its severities.

    Args:
        corruption: Its text, such as "haze".
        quantity: What a severity stands for.
        unit: Its unit; "" for a ratio.
        points: Measured severities, ascending; the first is 0.
        severities: Severities of equal harm, ascending; the last is 1.
        levels: The physical quantity at each of them.
    """

    corruption: str
    quantity: str
    unit: str = ""
    points: tuple[SensitivityPointFacts, ...] = Field(min_length=2)
    severities: tuple[float, ...]
    levels: tuple[float, ...]


class SensitivityFacts(RunFile):
    """The curves of one network.

    Args:
        features: The layer and the network that the features are of.
        chips: Number of chips.
        passes: Forward passes of these chips.
        curves: One per corruption.
    """

    features: str
    chips: int
    passes: int
    curves: tuple[SensitivityCurveFacts, ...] = ()


class EpochFacts(RunFile):
    """One epoch of one network: a row of models/<name>/history.jsonl. `scores` holds the validation figures."""

    model: str
    epoch: int
    loss: float | None = None
    best: bool = False
    scores: Mapping[str, float | None] = Field(default_factory=dict)

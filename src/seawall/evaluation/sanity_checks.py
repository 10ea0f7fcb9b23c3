"""Questions to a model before its robustness is believed: each answer that speaks against the number is a flag."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from seawall.attacks.cost import count_passes
from seawall.attacks.gradient import PGD
from seawall.attacks.losses import cross_entropy
from seawall.attacks.square import Random, Square
from seawall.attacks.target import AWAY, as_found, check, check_logits, take_aim, usable
from seawall.attacks.transfer import Transfer
from seawall.errors import UsageError
from seawall.evaluation.case import Asked, Case
from seawall.inference.predict import model_digest
from seawall.io import write_atomic
from seawall.metrics.robustness_card import SLACK, doubts, with_doubts
from seawall.models.water_index import ThresholdNet, extreme_images
from seawall.modules import checked_forward
from seawall.result import StageProgress
from seawall.rng import Keys
from seawall.threat.model import CEILING, FLOOR, ThreatModel
from seawall.types import Batch, SegmentationModel
from seawall.version import code_version

__all__ = [
    "NOT_INTERROGATED", "QUICK", "Answers", "Interrogation", "doubts", "interrogate", "interrogated", "not_interrogated",
    "with_doubts",
]  # fmt: skip

DRAWS = 5
FAR: Mapping[str, tuple[float, ...]] = {"reflectance": (0.5, 2.0), "stretched": (1.0,)}
FAR_DB = (10.0, 40.0)
"""Budgets that stand for none, in linf and data units."""
SURVIVES = 0.25
"""Share of right pixels under an unbounded attack from which on the attack is thought broken."""
NOT_INTERROGATED = "not-interrogated"
CACHE = "interrogation.json"


@dataclass(frozen=True)
class Answers:
    """What an interrogation found.

    Args:
        flags: Ids, as `seawall.report.flags` explains them.
        accuracy: Share of right pixels, mean over the chips, by question.
        passes: Forward passes per chip that the questions took.
        seconds: Time that they took, all chips together.
        chips: How many chips were asked.
    """

    flags: tuple[str, ...]
    accuracy: Mapping[str, float]
    passes: float = 0.0
    seconds: float = 0.0
    chips: int = 0

    def joined(self, other: Answers) -> Answers:
        """Return what both say of the same chips."""
        flags = tuple(dict.fromkeys((*self.flags, *other.flags)))
        passes, seconds = self.passes + other.passes, self.seconds + other.seconds
        return Answers(flags, {**self.accuracy, **other.accuracy}, passes, seconds, max(self.chips, other.chips))


@dataclass(frozen=True)
class Interrogation:
    """How hard to ask. With the defaults a chip costs about 300 forward passes per budget, and 80 once per model.

    A model that is an index with a threshold is compared with its exact worst case instead, which costs 30.

    Args:
        chips: How many chips with something right on them are asked at most.
        steps: Steps of the attack that the others are compared with.
        queries: Forward passes of the black-box attack.
        unbounded: Steps of each attack without a budget.
        gain: Accuracy that twice the steps may take away before the attack counts as not settled.
    """

    chips: int = 4
    steps: int = 20
    queries: int = 50
    unbounded: int = 40
    gain: float = 0.02

    def __post_init__(self) -> None:
        if min(self.chips, self.steps, self.queries, self.unbounded) < 1:
            raise UsageError(f"interrogation: expected at least one chip, step and query, got {self}; raise it")

    def __call__(
        self, model: SegmentationModel, batch: Batch, threat: ThreatModel, keys: Keys, *,
        surrogate: SegmentationModel | None = None,
    ) -> Answers:  # fmt: skip
        """Return the flags of a model under a threat; a zero budget or nothing valid raises none of the attack's."""
        once = self.about_model(model, batch, threat, keys)
        return once.joined(self.about_threat(model, batch, threat, keys, surrogate=surrogate))

    def about_model(self, model: SegmentationModel, batch: Batch, threat: ThreatModel, keys: Keys) -> Answers:
        """Return what does not depend on the budget: the forward pass, gradients that are zero, no budget at all.

        Args:
            model: Any model with a spec.
            batch: Labelled chips.
            threat: Any of the threats; its unit and bounds count, and a radius of 0 asks no attack.
            keys: Randomness.
        """
        with self._asking(model, batch, threat, keys) as ask:
            ask.flags += [*_forward_flags(model, ask.batch), *_gradient_flags(model, ask.batch)]
            attackable = len(ask.batch) and threat.radius and _has_gradient(model, ask.batch)
            if attackable and not _corners(model, ask.batch, threat):
                ask.accuracy["unbounded"] = min(
                    ask.after(PGD(steps=self.unbounded, step=0.1), far) for far in _unbounded(threat)
                )
                if ask.accuracy["unbounded"] > SURVIVES:
                    ask.flags.append("unbounded-survives")
        return ask.answers()

    def about_threat(
        self, model: SegmentationModel, batch: Batch, threat: ThreatModel, keys: Keys, *,
        surrogate: SegmentationModel | None = None, alone: bool = True,
    ) -> Answers:  # fmt: skip
        """Return what depends on the budget; nothing where it is zero.

        Args:
            model: Any model with a spec.
            batch: Labelled chips.
            threat: What the adversary may do.
            keys: Randomness.
            surrogate: Another model for the transfer attack; a classifier per pixel where None.
            alone: Whether no other budget of this kind is asked; then half and twice the budget are tried too.
        """
        with self._asking(model, batch, threat, keys) as ask:
            if len(ask.batch) and threat.radius:
                ask.flags += _steepness_flags(model, ask.batch, threat)
                corners = _corners(model, ask.batch, threat)
                if corners:
                    ask.accuracy["attack"] = ask.after(PGD(steps=self.steps), threat)
                    ask.accuracy["exact"] = _right(model, ask.batch, *corners)
                else:
                    self._rivals(ask, threat, surrogate, alone)
                ask.flags += self._judge(ask.accuracy)
        return ask.answers()

    @contextmanager
    def _asking(self, model: SegmentationModel, batch: Batch, threat: ThreatModel, keys: Keys) -> Iterator[_Inquiry]:
        check("interrogate", model, batch, threat)
        start = time.monotonic()
        with as_found(model), count_passes(model) as passes:
            chosen = _informative(model, usable(batch), self.chips)
            ask = _Inquiry(model, chosen, Keys(keys.seed, chosen.chips, keys.path))
            yield ask
        ask.passes, ask.seconds = passes.forward / max(len(chosen), 1), time.monotonic() - start

    def _rivals(self, ask: _Inquiry, threat: ThreatModel, surrogate: SegmentationModel | None, alone: bool) -> None:
        """Run the attack that is doubted, and whatever could beat it."""
        blind = not _has_gradient(ask.model, ask.batch)
        usual: Callable[..., Tensor] = Random() if blind else PGD(steps=self.steps)
        found = ask.accuracy
        found["clean"], found["attack"] = _right(ask.model, ask.batch, ask.batch.image), ask.after(usual, threat)
        found["noise"] = min(ask.after(Random(), threat, str(draw)) for draw in range(DRAWS))
        found["black box"] = ask.after(Square(steps=self.queries), threat)
        found["transfer"] = ask.after(Transfer(surrogate=surrogate, attack_settings={"steps": self.steps}), threat)
        if not blind:
            longer = (PGD(steps=2 * self.steps), PGD(steps=self.steps, restarts=2))
            found["twice the steps"] = min(ask.after(attack, threat) for attack in longer)
            for factor, name in ((0.5, "half eps"), (2.0, "twice eps")) if alone else ():
                found[name] = ask.after(usual, threat.scaled(factor))

    def _judge(self, right: Mapping[str, float]) -> list[str]:
        attack, flags = right["attack"], []
        if right.get("exact", attack) < attack - SLACK:
            flags.append("weaker-than-exact")
        if right.get("noise", attack) < attack - SLACK:
            flags.append("weaker-than-noise")
        if right.get("black box", attack) < attack - SLACK:
            flags.append("black-box-wins")
        if right.get("transfer", attack) < attack - SLACK:
            flags.append("transfer-wins")
        if right.get("twice the steps", attack) < attack - self.gain:
            flags.append("more-steps-gain")
        if right.get("half eps", attack) < attack - SLACK or right.get("twice eps", attack) > attack + SLACK:
            flags.append("not-monotone")
        return flags


@dataclass
class _Inquiry:
    """A model under questions: the chips that are asked, and what was found so far."""

    model: SegmentationModel
    batch: Batch
    keys: Keys
    flags: list[str] = field(default_factory=list)
    accuracy: dict[str, float] = field(default_factory=dict)
    passes: float = 0.0
    seconds: float = 0.0

    def after(self, attack: Callable[..., Tensor], threat: ThreatModel, name: str = "") -> float:
        """Return the share of right pixels under an attack."""
        return _right(
            self.model, self.batch, attack(self.model, self.batch, threat, self.keys.fold("interrogate", name))
        )

    def answers(self) -> Answers:
        """Return what was found."""
        return Answers(tuple(self.flags), self.accuracy, self.passes, self.seconds, len(self.batch))


def interrogate(
    model: SegmentationModel,
    batch: Batch,
    threat: ThreatModel,
    keys: Keys,
    *,
    surrogate: SegmentationModel | None = None,
) -> tuple[str, ...]:
    """Return the flags that a robustness number of this model carries.

    Args:
        model: Any model with a spec; it is left as it was found.
        batch: Labelled chips; a few are enough.
        threat: What the adversary may do.
        keys: Randomness.
        surrogate: Another model for the transfer attack; a classifier per pixel where None.

    Example:
        >>> from seawall.testing import ground_batch, linear_model
        >>> batch = ground_batch()
        >>> interrogate(linear_model(), batch, ThreatModel("linf", 0.03), Keys(0, batch.chips))
        ()
    """
    return Interrogation()(model, batch, threat, keys, surrogate=surrogate).flags


QUICK = Interrogation(chips=2, queries=25, unbounded=25)
"""What a run can afford for every network that it attacks."""


def interrogated(
    model: SegmentationModel, batches: Iterable[Batch], cases: Sequence[Case], seed: int, ask: Interrogation = QUICK, *,
    home: Path | None = None, progress: StageProgress | None = None,
) -> list[Case]:  # fmt: skip
    """Return the cases with the flags that their numbers carry, and what the interrogation cost.

    What depends on the budget is asked for every threat, what does not once; flags of the model go to every attack.

    Args:
        model: Any model with a spec.
        batches: Chips; as many as the interrogation wants are read.
        cases: What is to be measured.
        seed: Seed of the interrogation.
        ask: How hard to ask.
        home: Folder that keeps the answers, so that a run that goes on does not ask again; none where None.
        progress: Called with (done, total, note), the note naming the threat.
    """
    threats = list(dict.fromkeys(case.threat for case in cases if isinstance(case.threat, ThreatModel)))
    if not threats:
        return list(cases)
    parts = _first(batches, ask.chips)
    device = next((t.device for t in _tensors(model)), None)
    parts = [part if device is None else part.to(device) for part in parts]
    known = _Known(home, model, parts, seed, ask)
    largest = max(threats, key=lambda threat: threat.radius)
    say = progress or (lambda done, total, note: None)
    say(0, len(threats) + 1, f"interrogation of {len(threats)} threats")
    once = known.answers("", largest, lambda part, keys: ask.about_model(model, part, largest, keys))
    found: dict[ThreatModel, Answers] = {}
    for i, threat in enumerate(threats):
        say(i + 1, len(threats) + 1, f"interrogation {threat}")
        alone = not any(_same_kind(threat, other) for other in threats if other is not threat and other.radius)

        def put(part: Batch, keys: Keys, threat: ThreatModel = threat, alone: bool = alone) -> Answers:
            return ask.about_threat(model, part, threat, keys, alone=alone)

        found[threat] = known.answers("alone" if alone else "among others", threat, put)
    say(len(threats) + 1, len(threats) + 1, "interrogation")
    rising = _not_monotone(found)
    made = []
    for case in cases:
        if not isinstance(case.threat, ThreatModel):
            made.append(case)
            continue
        answers = once.joined(found[case.threat]) if case.threat is threats[0] else found[case.threat]
        more = ("not-monotone",) if case.threat in rising else ()
        flags = tuple(dict.fromkeys((*case.flags, *once.flags, *answers.flags, *more)))
        made.append(replace(case, flags=flags, asked=Asked(answers.passes, answers.seconds, answers.chips)))
    return made


def not_interrogated(cases: Iterable[Case]) -> list[Case]:
    """Return the cases with a flag on every attack that says that nothing was asked."""
    return [
        replace(case, flags=(*case.flags, NOT_INTERROGATED)) if isinstance(case.threat, ThreatModel) else case
        for case in cases
    ]


def _first(batches: Iterable[Batch], count: int) -> list[Batch]:
    """Return as many chips as are asked for; chips of one size make one batch."""
    parts: list[Batch] = []
    for batch in batches:
        parts.append(batch.select(range(min(len(batch), count - sum(map(len, parts))))))
        if sum(map(len, parts)) >= count:
            break
    return parts


def _same_kind(a: ThreatModel, b: ThreatModel) -> bool:
    """Tell whether two threats differ in the size of their budget alone."""
    return a.norm == b.norm and a.facts._replace(eps=()) == b.facts._replace(eps=())


def _not_monotone(found: Mapping[ThreatModel, Answers]) -> list[ThreatModel]:
    """Return the threats at which the attack did less than under one that allows less."""
    right = {threat: answers.accuracy["attack"] for threat, answers in found.items() if "attack" in answers.accuracy}
    return [
        threat
        for threat in right
        if any(small.facts.allows_less(threat.facts) and right[small] < right[threat] - SLACK for small in right)
    ]


class _Known:
    """Answers that were given before, in a file of the run folder; their key covers all that could change them."""

    def __init__(
        self, home: Path | None, model: SegmentationModel, parts: Sequence[Batch], seed: int, ask: Interrogation
    ) -> None:
        self.path = None if home is None or not isinstance(model, nn.Module) else home / CACHE
        self.parts, self.seed = parts, seed
        if self.path is not None and isinstance(model, nn.Module):
            self.base = repr((code_version(), model_digest(model), _digest(parts), seed, ask))

    def answers(self, kind: str, threat: ThreatModel, put: Callable[[Batch, Keys], Answers]) -> Answers:
        """Return the answers to a question, asked now if they are not known."""
        if self.path is None:
            return self._ask(put)
        key = hashlib.blake2b(repr((self.base, kind, threat)).encode(), digest_size=16).hexdigest()
        held = self._read(self.path)
        if key not in held:
            held[key] = {"threat": str(threat) if kind else "", **asdict(self._ask(put))}
            write_atomic(self.path, json.dumps(held, indent=1, sort_keys=True) + "\n")
        row = {name: value for name, value in held[key].items() if name != "threat"}
        return Answers(**(row | {"flags": tuple(row["flags"])}))

    def _ask(self, put: Callable[[Batch, Keys], Answers]) -> Answers:
        found = [put(part, Keys(self.seed, part.chips, ("interrogate",))) for part in self.parts]
        if len(found) == 1:
            return found[0]
        chips = sum(one.chips for one in found)
        total = max(chips, 1)
        names = {name for one in found for name in one.accuracy}
        return Answers(
            tuple(dict.fromkeys(flag for one in found for flag in one.flags)),
            {n: sum(o.accuracy.get(n, 0.0) * o.chips for o in found) / total for n in sorted(names)},
            sum(one.passes * one.chips for one in found) / total, sum(one.seconds for one in found), chips,
        )  # fmt: skip

    @staticmethod
    def _read(path: Path) -> dict[str, dict[str, Any]]:
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}  # nothing known, or a file that no longer says anything: the questions are asked again
        return held if isinstance(held, dict) else {}


def _digest(parts: Iterable[Batch]) -> str:
    found = hashlib.blake2b(digest_size=8)
    for part in parts:
        found.update("\x1f".join(part.chips).encode())
        for tensor in (part.image, part.label, part.seen, part.valid):
            found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def _unbounded(threat: ThreatModel) -> list[ThreatModel]:
    """Return threats without a budget: free, and the farthest also within the unit's physical range.

    Free, an image of negative reflectances may lie where a ratio of bands is undefined and has no gradient that an attack
    could follow; within the range, a network may have no way to be wrong. Either is enough to show that attacks get through.
    """
    sizes = FAR.get(threat.unit, FAR_DB)
    within = ThreatModel("linf", sizes[-1], threat.unit, FLOOR[threat.unit], CEILING[threat.unit])
    return [*(ThreatModel("linf", eps, threat.unit) for eps in sizes), within]


def _corners(model: SegmentationModel, batch: Batch, threat: ThreatModel) -> tuple[Tensor, ...]:
    """Return the images that hold the exact worst case, where the model has a closed form; else nothing."""
    if not isinstance(model, ThresholdNet):
        return ()
    return extreme_images(model, threat.around(batch.image, batch.seen))


def _tensors(model: SegmentationModel) -> Iterable[Tensor]:
    return (*model.parameters(), *model.buffers()) if isinstance(model, nn.Module) else ()


def _informative(model: SegmentationModel, batch: Batch, most: int) -> Batch:
    """Return the first chips where something is right, so that there is something to lose."""
    if not len(batch):
        return batch
    with torch.no_grad():
        right = ((checked_forward(model, batch.image).argmax(1) == batch.label) & batch.valid).flatten(1).any(1)
    return batch.select(right.nonzero()[:most, 0].tolist())


def _forward_flags(model: SegmentationModel, batch: Batch) -> list[str]:
    """Ask twice, and look whether the answers are probabilities."""
    if not len(batch):
        return []
    flags = []
    with torch.no_grad():
        first, second = (check_logits(model(batch.image), batch.image, len(model.spec.classes)) for _ in range(2))
    spread = (first - first.mean()).abs().amax().clamp_min(1e-12)
    if bool((first - second).abs().amax() > 1e-4 * spread):
        flags.append("random-forward")
    total = first.sum(1)
    if bool((first >= 0).all()) and bool(((total - 1).abs() < 1e-3).all()):
        flags.append("probabilities")
    return flags


def _has_gradient(model: SegmentationModel, batch: Batch) -> bool:
    image = batch.image[:1].detach().requires_grad_()
    return bool(model(image).requires_grad)


def _gradient_flags(model: SegmentationModel, batch: Batch) -> list[str]:
    """Look for chips whose loss has no gradient at all, or none at most pixels."""
    slope = _slope(model, batch)
    if slope is None:
        return []
    if bool((slope.largest == 0).any()):
        return ["zero-gradient"]
    return ["vanishing-gradient"] if bool((slope.still > 0.5).any()) else []


def _steepness_flags(model: SegmentationModel, batch: Batch, threat: ThreatModel) -> list[str]:
    """Look for chips where the whole budget moves the loss by less than float32 resolves."""
    slope = _slope(model, batch)
    if slope is None or bool((slope.largest == 0).any()):
        return []
    return ["vanishing-gradient"] if bool((threat.radius * slope.change < 1e-6 * slope.gap).any()) else []


class _Slope(NamedTuple):
    """The gradient of each chip's mean loss, (b,) each."""

    largest: Tensor  # of all values
    still: Tensor  # share of the valid pixels without any
    change: Tensor  # of the loss per unit of budget
    gap: Tensor  # between the largest and the smallest logit of a pixel, at most


def _slope(model: SegmentationModel, batch: Batch) -> _Slope | None:
    batch = batch.select(batch.valid.flatten(1).any(1).nonzero()[:, 0].tolist())
    if not len(batch):
        return None
    if not _has_gradient(model, batch):
        none = torch.zeros(len(batch))
        return _Slope(none, none + 1, none, none)
    aim = take_aim(model, batch, AWAY)
    image = batch.image.detach().requires_grad_()
    logits = check_logits(model(image), image, len(model.spec.classes))
    loss = torch.where(aim.valid, cross_entropy(logits, aim), 0.0)
    (grad,) = torch.autograd.grad(loss.sum(), image)
    pixels = aim.valid.flatten(1).sum(1)
    gap = (logits.detach().amax(1) - logits.detach().amin(1)).flatten(1).amax(1).clamp_min(1e-12)
    still = ((grad == 0).all(1) & aim.valid).flatten(1).sum(1) / pixels
    return _Slope(grad.flatten(1).abs().amax(1), still, grad.abs().flatten(1).sum(1) / pixels, gap)


def _right(model: SegmentationModel, batch: Batch, *images: Tensor) -> float:
    """Return the share of valid pixels that are right on every one of the images, mean over the chips."""
    right = batch.valid
    with torch.no_grad():
        for image in images:
            right = right & (model(image).argmax(1) == batch.label)
    count = batch.valid.flatten(1).sum(1).clamp_min(1)
    return float((right.flatten(1).sum(1) / count).mean())

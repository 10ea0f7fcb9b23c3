"""Flags of the sanity checks on the cases of an evaluation, with findings kept in the run folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import nn

from seawall.evaluation.case import Case, SanityCheckCost
from seawall.evaluation.exact import ExactWorstCase
from seawall.evaluation.sanity_checks import QUICK_CHECKS, SanityChecks, SanityFindings
from seawall.inference.predict import model_digest
from seawall.io import write_atomic
from seawall.metrics.consistency import ACCURACY_MARGIN
from seawall.modules import to_device_of
from seawall.result import StageProgress
from seawall.rng import Keys
from seawall.threat.model import ThreatModel
from seawall.types import Batch, SegmentationModel
from seawall.version import code_version

NOT_CHECKED = "no-sanity-checks"
FINDINGS_FILE = "sanity_checks.json"


def with_sanity_flags(
    model: SegmentationModel, batches: Iterable[Batch], cases: Sequence[Case], seed: int, checks: SanityChecks = QUICK_CHECKS, *,
    home: Path | None = None, progress: StageProgress | None = None,
) -> list[Case]:  # fmt: skip
    """Return the cases with the flags that their numbers carry, and the cost of the sanity checks.

    What depends on the budget is checked for every threat, what does not once; flags of the model go to every attack, but
    for the exact worst case, which no attack can beat.

    Args:
        model: Any model with a spec.
        batches: Chips; as many as the checks need are read.
        cases: The cases of the evaluation.
        seed: Seed of the checks.
        checks: The checks and their effort.
        home: Folder that keeps the findings, so that a resumed run does not repeat the checks; none where None.
        progress: Called with (done, total, note), the note naming the threat.
    """
    threats = list(dict.fromkeys(threat for case in cases if (threat := _checked_threat(case))))
    if not threats:
        return list(cases)
    parts = _first_chips(batches, checks.chips)
    parts = [to_device_of(model, part) for part in parts]
    known = _FindingsCache(home, model, parts, seed, checks)
    largest = max(threats, key=lambda threat: threat.radius)
    report = progress or (lambda done, total, note: None)
    report(0, len(threats) + 1, f"sanity checks of {len(threats)} threats")
    once = known.findings("", largest, lambda part, keys: checks.check_model(model, part, largest, keys))
    found: dict[ThreatModel, SanityFindings] = {}
    for i, threat in enumerate(threats):
        report(i + 1, len(threats) + 1, f"sanity checks {threat}")
        alone = not any(_same_but_for_eps(threat, other) for other in threats if other is not threat and other.radius)

        def check(part: Batch, keys: Keys, threat: ThreatModel = threat, alone: bool = alone) -> SanityFindings:
            return checks.check_threat(model, part, threat, keys, alone=alone)

        found[threat] = known.findings("alone" if alone else "among others", threat, check)
    report(len(threats) + 1, len(threats) + 1, "sanity checks")
    not_monotone = _not_monotone(found)
    made = []
    for case in cases:
        threat_of_case = _checked_threat(case)
        if threat_of_case is None:
            made.append(case)
            continue
        finding = once.merged(found[threat_of_case]) if threat_of_case is threats[0] else found[threat_of_case]
        more = ("not-monotone",) if threat_of_case in not_monotone else ()
        flags = tuple(dict.fromkeys((*case.flags, *once.flags, *finding.flags, *more)))
        made.append(
            replace(case, flags=flags, check_cost=SanityCheckCost(finding.passes, finding.seconds, finding.chips))
        )
    return made


def without_sanity_checks(cases: Iterable[Case]) -> list[Case]:
    """Return the cases with a flag on every attack that there were no sanity checks."""
    return [replace(case, flags=(*case.flags, NOT_CHECKED)) if _checked_threat(case) else case for case in cases]


def _checked_threat(case: Case) -> ThreatModel | None:
    """Return the threat of a case whose number is an upper bound; None for clean images and the exact worst case."""
    return None if isinstance(case.attack, ExactWorstCase) else case.threat


def _first_chips(batches: Iterable[Batch], count: int) -> list[Batch]:
    """Return the first `count` chips; chips of one size make one batch."""
    parts: list[Batch] = []
    for batch in batches:
        parts.append(batch.select(range(min(len(batch), count - sum(map(len, parts))))))
        if sum(map(len, parts)) >= count:
            break
    return parts


def _same_but_for_eps(a: ThreatModel, b: ThreatModel) -> bool:
    """Return whether two threats differ in the size of their budget alone."""
    return a.norm == b.norm and a.facts._replace(eps=()) == b.facts._replace(eps=())


def _not_monotone(found: Mapping[ThreatModel, SanityFindings]) -> list[ThreatModel]:
    """Return the threats at which the attack did less than under one that allows less."""
    right = {threat: finding.accuracy["attack"] for threat, finding in found.items() if "attack" in finding.accuracy}
    return [
        threat
        for threat in right
        if any(
            small.facts.allows_less(threat.facts) and right[small] < right[threat] - ACCURACY_MARGIN for small in right
        )
    ]


class _FindingsCache:
    """Findings of earlier runs, in a file of the run folder; their key covers all that could change them."""

    def __init__(
        self, home: Path | None, model: SegmentationModel, parts: Sequence[Batch], seed: int, checks: SanityChecks
    ) -> None:
        self.path = None if home is None or not isinstance(model, nn.Module) else home / FINDINGS_FILE
        self.parts, self.seed = parts, seed
        if self.path is not None and isinstance(model, nn.Module):
            self.base = repr((code_version(), model_digest(model), _batch_digest(parts), seed, checks))

    def findings(
        self, kind: str, threat: ThreatModel, check: Callable[[Batch, Keys], SanityFindings]
    ) -> SanityFindings:
        """Return the findings of a kind of check, computed now if they are not known."""
        if self.path is None:
            return self._compute(check)
        key = hashlib.blake2b(repr((self.base, kind, threat)).encode(), digest_size=16).hexdigest()
        held = self._read(self.path)
        if key not in held:
            held[key] = {"threat": str(threat) if kind else "", **asdict(self._compute(check))}
            write_atomic(self.path, json.dumps(held, indent=1, sort_keys=True) + "\n")
        row = {name: value for name, value in held[key].items() if name != "threat"}
        return SanityFindings(**(row | {"flags": tuple(row["flags"])}))

    def _compute(self, check: Callable[[Batch, Keys], SanityFindings]) -> SanityFindings:
        found = [check(part, Keys(self.seed, part.chips, ("sanity-checks",))) for part in self.parts]
        if len(found) == 1:
            return found[0]
        chips = sum(one.chips for one in found)
        total = max(chips, 1)
        names = {name for one in found for name in one.accuracy}
        return SanityFindings(
            tuple(dict.fromkeys(flag for one in found for flag in one.flags)),
            {n: sum(o.accuracy.get(n, 0.0) * o.chips for o in found) / total for n in sorted(names)},
            sum(one.passes * one.chips for one in found) / total, sum(one.seconds for one in found), chips,
        )  # fmt: skip

    @staticmethod
    def _read(path: Path) -> dict[str, dict[str, Any]]:
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}  # nothing known, or a damaged file: the checks run again
        return held if isinstance(held, dict) else {}


def _batch_digest(parts: Iterable[Batch]) -> str:
    found = hashlib.blake2b(digest_size=8)
    for part in parts:
        found.update("\x1f".join(part.chips).encode())
        for tensor in (part.image, part.label, part.seen, part.valid):
            found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()

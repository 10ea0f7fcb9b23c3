"""Suites: what they hold, that their worst case is the worst, that a killed one goes on, and the one line for users."""

from pathlib import Path

import pytest

import seawall
from seawall.attacks.suites import Suite, named_attacks, parse_suite
from seawall.errors import UsageError
from seawall.evaluation.case import CLEAN_CASE, Case
from seawall.evaluation.evaluate import evaluate_model
from seawall.metrics.worst_case import worst_case
from seawall.records import RecordLog
from seawall.registry import build, entries
from seawall.rng import Keys
from seawall.testing.fixtures import ground_batch, linear_model
from seawall.threat.model import ThreatModel

EPS = ThreatModel("linf", 0.03, low=0.0)


@pytest.mark.parametrize("entry", list(entries("suite")), ids=lambda entry: entry.name)
def test_every_member_attacks_inside_the_threat(entry: object) -> None:
    suite: Suite = build("suite", entry.name, entry.smoke)  # type: ignore[attr-defined,assignment]
    members, model, batch = suite.members(), linear_model(), ground_batch(images=1)
    assert len({m.name for m in members}) == len(members)
    assert all(m.name.startswith(f"{entry.name} ") and str(m.passes) in m.name for m in members)  # type: ignore[attr-defined]
    for name, attack in named_attacks(suite):
        adv = attack(model, batch, EPS, Keys(0, batch.chips))
        assert EPS.distance(adv, batch.image).max() <= EPS.radius * 1.0001, name


def test_published_budgets() -> None:
    assert [m.passes for m in parse_suite("sea").members()] == [300, 300, 300]
    assert [m.passes for m in parse_suite("halmosi").members()] == [200, 200, 300, 300, 300, 300, 200, 200, 500, 500]
    for passes in (1, 30, 59, 60, 301):
        assert sum(m.passes for m in parse_suite(f"seawall passes={passes}").members()) == passes


@pytest.mark.parametrize(
    ("text", "says"),
    [("see", "did you mean 'sea'"), ("sea step=3", "did you mean 'steps'"), ("sea 30", "setting=value"),
     ("seawall passes=0", "passes >= 1"), ("sea steps=-1", "steps >= 1"), ("halmosi share=0", "steps >= 1")],
)  # fmt: skip
def test_wrong_suites_are_errors(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        parse_suite(text)


def test_one_line_gives_rows_and_the_worst_case() -> None:
    result = seawall.attack(linear_model(), ground_batch(size=16), "linf 2% reflectance", suite="sea steps=10")
    names = [row["method"] for row in result.table]
    members = ["sea masked-ce 10", "sea balanced-ce 10", "sea js 10"]
    assert names == ["clean", *members, "sanity checks", "worst case"]
    asked = result.table.pop(-2)
    assert asked["passes"] > 100 and asked["seconds"] > 0 and asked["iou.pooled"] is None
    scores = [row["iou.pooled"] for row in result.table]
    assert scores[-1] == min(scores) and scores[-1] < scores[0]
    assert result.table[-1]["passes"] == sum(row["passes"] or 0 for row in result.table[:-1])
    assert sum(row["won"] for row in result.table[:-1]) == 3


def test_a_threat_may_be_a_value_and_a_suite_may_stand_beside_methods() -> None:
    result = seawall.attack(linear_model(), ground_batch(), EPS, method=["fgsm"], suite="seawall passes=4")
    assert [row["method"] for row in result.table] == [
        "clean",
        "fgsm",
        "seawall pooled 4",
        "sanity checks",
        "worst case",
    ]


def test_a_killed_suite_goes_on_at_the_next_missing_pair(tmp_path: Path) -> None:
    model, batch = linear_model(), ground_batch()
    asked: list[tuple[str, tuple[str, ...]]] = []

    def case(name: str, attack: object) -> Case:
        def act(model: object, batch: object, threat: object, keys: object) -> object:
            asked.append((name, batch.chips))  # type: ignore[attr-defined]
            if len(asked) == 3:
                raise KeyboardInterrupt
            return attack(model, batch, threat, keys)  # type: ignore[operator]

        return Case(name, act, EPS)

    every = [CLEAN_CASE, *(case(name, attack) for name, attack in named_attacks(parse_suite("sea steps=5")))]
    singles = [batch.select([i]) for i in range(3)]

    def run(where: Path) -> list[object]:
        log = RecordLog(where)
        evaluate_model(model, singles, log=log, recipe="r", name="m", attacks=every)
        return sorted((r.key, r.value) for r in log)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "log")
    done = asked[:2]
    resumed = run(tmp_path / "log")
    assert not set(done) & set(asked[3:]), "what was done is done again"
    assert len(asked) == 3 + 7
    assert resumed == run(tmp_path / "fresh")
    assert not any(r.flags for r in worst_case(RecordLog(tmp_path / "log")))

"""Each flag of the interrogation, raised by a model that was built to deserve it, and none by an honest one."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import seawall
from seawall.figures import doubts, with_doubts
from seawall.interrogate import Interrogation, interrogate
from seawall.keys import Keys
from seawall.records import Record
from seawall.report.flags import explain
from seawall.testing import ground_batch, linear_model
from seawall.threat import ThreatFacts, ThreatModel, parse_threat
from seawall.types import Batch

EPS = ThreatModel("linf", 0.03, low=0.0)


class Altered(nn.Module):
    """A linear model with something done to its images or logits."""

    def __init__(
        self, before: Callable[[Tensor], Tensor] | None = None, after: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        super().__init__()
        self.linear = linear_model()
        self.spec = self.linear.spec
        self.before, self.after = before, after

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.before(image) if self.before else image)
        return self.after(logits) if self.after else logits


def flags(model: nn.Module, threat: ThreatModel = EPS, batch: Batch | None = None) -> tuple[str, ...]:
    batch = ground_batch(size=16) if batch is None else batch
    return interrogate(model, batch, threat, Keys(0, batch.chips))  # type: ignore[arg-type]


class Conv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.spec = linear_model().spec
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 3, padding=1))

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = 40 * self.layers((image - 0.3) * 8)
        return logits


def test_honest_models_raise_none() -> None:
    assert flags(linear_model()) == ()
    batch = ground_batch(size=16)
    model = Conv()
    with torch.no_grad():
        own = model(batch.image).argmax(1)
    assert flags(model, batch=Batch(batch.image, own, batch.seen, batch.valid, batch.chips)) == ()


def quantized(image: Tensor) -> Tensor:
    return (image * 50).round() / 50


def test_rounding_inside_has_no_gradient_and_loses_to_attacks_without() -> None:
    found = flags(Altered(before=quantized))
    assert "zero-gradient" in found and "black-box-wins" in found and "transfer-wins" in found
    assert "unbounded-survives" in found


def test_labels_instead_of_logits_have_no_gradient() -> None:
    hard = Altered(after=lambda z: functional.one_hot(z.argmax(1), 2).movedim(-1, 1).float())
    found = flags(hard)
    assert "zero-gradient" in found and "probabilities" in found


def test_dropout_left_on_is_a_random_forward() -> None:
    assert "random-forward" in flags(Altered(before=lambda x: functional.dropout(x, 0.2, training=True)))


def test_softmax_is_told_from_logits() -> None:
    assert "probabilities" in flags(Altered(after=lambda z: z.softmax(1)))
    assert "probabilities" not in flags(Altered(after=lambda z: z.log_softmax(1)))


def test_a_steep_squash_makes_gradients_vanish() -> None:
    assert "vanishing-gradient" in flags(Altered(after=lambda z: torch.tanh(400 * z)))


class _Liar(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, image: Tensor) -> Tensor:
        return image.clone()

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:  # type: ignore[override]
        return -grad


def test_gradients_that_point_the_wrong_way_are_weaker_than_noise() -> None:
    found = flags(Altered(before=_Liar.apply), ThreatModel("linf", 0.03))
    assert {"weaker-than-noise", "black-box-wins", "transfer-wins"} <= set(found)


def test_an_attack_that_has_not_settled_says_so() -> None:
    batch = ground_batch(size=16)
    short = Interrogation(steps=1)(linear_model(), batch, EPS, Keys(0, batch.chips))
    assert "more-steps-gain" in short.flags and "more-steps-gain" not in flags(linear_model())


def test_a_model_that_undoes_large_noise_is_not_monotone() -> None:
    batch = ground_batch(size=16)
    model = Altered(before=lambda x: torch.where((x - batch.image).abs() > 0.05, batch.image, x) if len(x) == 3 else x)
    found = Interrogation(chips=3)(model, batch, ThreatModel("linf", 0.04), Keys(0, batch.chips))  # type: ignore[arg-type]
    assert "not-monotone" in found.flags, found


def test_zero_budget_and_nothing_valid_are_defined() -> None:
    batch = ground_batch()
    assert flags(linear_model(), EPS.scaled(0)) == ()
    empty = Batch(batch.image, batch.label, batch.seen, torch.zeros_like(batch.valid), batch.chips)
    assert flags(linear_model(), batch=empty) == ()


def rows(method: str, threat: str, right: int, chip: str = "c") -> list[Record]:
    said = parse_threat(threat, linear_model().spec).facts if threat else ThreatFacts()
    base = Record("r", "m", method, threat, chip, "g", "", "", None, 0, (), 0.0, *said)
    return [
        base.measured("tp", right / 2, 100, "land"),
        base.measured("tp", right / 2, 100, "water"),
        base.measured("pixels", 100, 100),
    ]


def test_rows_speak_against_each_other() -> None:
    one, two = "linf 1% reflectance", "linf 2% reflectance"
    held = [
        *rows("clean", "", 98), *rows("pgd", one, 60), *rows("fgsm", one, 90), *rows("random", one, 80),
        *rows("square", one, 50), *rows("transfer", one, 55), *rows("pgd", two, 70),
    ]  # fmt: skip
    found = doubts(held)
    assert found["r", "m", "fgsm", one] == ("weaker-than-noise", "black-box-wins", "transfer-wins")
    assert found["r", "m", "pgd", one] == ("black-box-wins", "transfer-wins")
    assert found["r", "m", "pgd", two] == ("not-monotone",)
    assert ("r", "m", "square", one) not in found and ("r", "m", "random", one) not in found
    flagged = {(r.method, r.threat): r.flags for r in with_doubts(held)}
    assert flagged["pgd", two] == ("not-monotone",) and flagged["clean", ""] == ()


@pytest.mark.parametrize(
    ("small", "large", "comparable"),
    [
        ("linf 0.0013,0.0018 reflectance", "linf 0.0026,0.0036 reflectance", True),
        ("linf 1% reflectance", "linf 1%,2% reflectance", True),
        ("linf 1%,3% reflectance", "linf 2%,2% reflectance", False),
        ("linf 1% reflectance bands=B03", "linf 1% reflectance", True),
        ("linf 1% reflectance bands=B03", "linf 2% reflectance bands=B02", False),
        ("linf 1% reflectance", "linf 1% reflectance", False),
        ("linf 1% reflectance sign=up", "linf 2% reflectance", False),
        ("linf 1% reflectance region=clouds", "linf 2% reflectance", False),
        ("l2 0.1 reflectance", "linf 2% reflectance", False),
        ("linf 1% reflectance", "linf 2% reflectance low=none", False),
    ],
)
def test_an_attack_that_does_less_with_more_is_found_by_values(small: str, large: str, comparable: bool) -> None:
    found = doubts([*rows("pgd", small, 60), *rows("pgd", large, 70)])
    assert found == ({("r", "m", "pgd", large): ("not-monotone",)} if comparable else {})
    assert doubts([*rows("pgd", small, 70), *rows("pgd", large, 60)]) == {}


def test_one_good_attack_with_gradients_clears_the_others_of_hiding_them() -> None:
    held = [
        *rows("fgsm", "linf 1% reflectance", 90),
        *rows("pgd", "linf 1% reflectance", 40),
        *rows("square", "linf 1% reflectance", 50),
    ]
    assert doubts(held) == {}


@pytest.mark.parametrize(
    "flag",
    ["zero-gradient", "vanishing-gradient", "random-forward", "probabilities", "black-box-wins", "transfer-wins",
     "more-steps-gain", "not-monotone", "unbounded-survives", "weaker-than-noise"],
)  # fmt: skip
def test_every_flag_is_explained_with_what_to_do(flag: str) -> None:
    found = explain(flag)
    assert found.id == flag and "marked this number" not in found.means and found.do.endswith(".")


def test_the_docs_have_a_section_for_every_flag() -> None:
    from seawall.report.flags import _KNOWN

    page = (Path(__file__).parents[2] / "docs" / "flags.md").read_text(encoding="utf-8")
    sections = {part.split("\n")[0]: part for part in page.split("\n## ")[1:]}
    assert set(sections) >= {flag.id for flag in _KNOWN} - {"partial-suite"}
    assert all(
        word in part for part in sections.values() for word in ("**Seen.**", "**Why it matters.**", "**What to do.**")
    )


def test_flags_reach_the_rows_of_the_one_line_attack() -> None:
    batch = ground_batch(size=16)
    blunt = Altered(before=lambda x: quantized(x) + 0 * x)
    result = seawall.attack(blunt, batch, "linf 3% reflectance", method=["pgd", "random"])  # type: ignore[arg-type]
    assert "zero-gradient" in str(result.table[1]["flags"]) and result.table[0]["flags"] == ""
    assert "square" in str(result.facts["flag zero-gradient"])

"""Each flag of the sanity checks, raised by a model that was built to deserve it, and none by an honest one."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import seawall
from seawall.attacks.cost import count_passes
from seawall.attacks.pgd import PGD
from seawall.evaluation.case import CLEAN_CASE, Case
from seawall.evaluation.sanity_checks import QUICK_CHECKS, SanityChecks, check_sanity
from seawall.evaluation.sanity_flags import with_sanity_flags
from seawall.metrics.consistency import consistency_flags, with_consistency_flags
from seawall.models.water_index import ThresholdNet, WaterIndexThreshold, extreme_images
from seawall.records import Record, RecordLog, ThreatFacts
from seawall.report.flags import explain
from seawall.rng import Keys
from seawall.testing.fixtures import ground_batch, linear_model
from seawall.threat.model import ThreatModel
from seawall.threat.parser import parse_threat
from seawall.types import Batch, ModelSpec

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
    return check_sanity(model, batch, threat, Keys(0, batch.chips))  # type: ignore[arg-type]


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
    short = SanityChecks(steps=1)(linear_model(), batch, EPS, Keys(0, batch.chips))
    assert "more-steps-gain" in short.flags and "more-steps-gain" not in flags(linear_model())


def test_a_model_that_undoes_large_noise_is_not_monotone() -> None:
    batch = ground_batch(size=16)
    model = Altered(before=lambda x: torch.where((x - batch.image).abs() > 0.05, batch.image, x) if len(x) == 3 else x)
    found = SanityChecks(chips=3)(model, batch, ThreatModel("linf", 0.04), Keys(0, batch.chips))  # type: ignore[arg-type]
    assert "not-monotone" in found.flags, found


def test_zero_budget_and_nothing_valid_are_defined() -> None:
    batch = ground_batch()
    assert flags(linear_model(), EPS.scaled(0)) == ()
    empty = Batch(batch.image, batch.label, batch.seen, torch.zeros_like(batch.valid), batch.chips)
    assert flags(linear_model(), batch=empty) == ()


def of_cases(
    model: nn.Module, *texts: str, ask: SanityChecks = QUICK_CHECKS, **more: object
) -> dict[str, tuple[str, ...]]:
    batch = ground_batch(size=16)
    cases = [CLEAN_CASE, *(Case("pgd", PGD(), parse_threat(text, model.spec)) for text in texts)]
    made = with_sanity_flags(model, [batch], cases, 0, ask, **more)  # type: ignore[arg-type]
    assert made[0] == CLEAN_CASE
    return {text: case.flags for text, case in zip(texts, made[1:], strict=True)}


@pytest.mark.parametrize("first", ["linf 0% reflectance", "linf 0.01% reflectance"])
def test_a_small_budget_at_the_front_silences_nothing(first: str) -> None:
    liar = Altered(before=_Liar.apply)
    alone = set(of_cases(liar, "linf 3% reflectance")["linf 3% reflectance"])
    assert {"black-box-wins", "transfer-wins"} <= alone
    both = of_cases(liar, first, "linf 3% reflectance")
    assert {"black-box-wins", "transfer-wins"} <= set(both["linf 3% reflectance"])
    assert not {"black-box-wins", "transfer-wins"} & set(both[first])


def test_a_flag_stays_at_the_budget_where_it_was_found() -> None:
    clean = ground_batch(size=16).image[: QUICK_CHECKS.chips]
    # beyond 2 % the model falls back to the clean image, so only the attack at 4 % is lost
    undone = Altered(before=lambda x: torch.where((x - clean).abs() > 0.02, clean, x) if len(x) == len(clean) else x)
    found = of_cases(undone, "linf 1% reflectance", "linf 4% reflectance")
    assert "not-monotone" in found["linf 4% reflectance"] and "not-monotone" not in found["linf 1% reflectance"]


def test_what_does_not_depend_on_the_budget_is_asked_once_and_stands_at_every_attack() -> None:
    model = Altered(after=lambda z: z.softmax(1))
    with count_passes(model) as one:
        of_cases(model, "linf 1% reflectance")
    with count_passes(model) as two:
        found = of_cases(model, "linf 1% reflectance", "linf 2% reflectance")
    assert all("probabilities" in flags for flags in found.values())
    once = 3 * QUICK_CHECKS.unbounded * QUICK_CHECKS.chips
    assert two.forward < 2 * one.forward - once


def threshold(index: str, bands: tuple[str, ...], at: float = 0.0) -> ThresholdNet:
    return WaterIndexThreshold(index=index, threshold=at)(ModelSpec(bands, ("land", "water"), "reflectance", 10.0))  # type: ignore[arg-type]


def of_threshold(model: ThresholdNet, size: int = 12, seed: int = 0) -> Batch:
    image = torch.rand(2, len(model.spec.bands), size, size, generator=torch.Generator().manual_seed(seed)) * 0.2
    image[0, :, 0, :3] = 0.0  # undefined for a ratio
    return Batch.of(image, model(image).argmax(1))


RULED = [
    ("ndwi", ("B03", "B08"), 0.1),
    ("awei_sh", ("B02", "B03", "B08", "B11", "B12"), 0.0),
    ("mndwi", ("B11", "B03"), -0.2),
]


@pytest.mark.parametrize(("index", "bands", "at"), RULED)
@pytest.mark.parametrize(
    "text", ["linf 3% reflectance", "haze 3% reflectance spectrum=first", "linf 3% reflectance sign=up low=none"]
)
def test_the_exact_worst_case_of_an_index_is_what_a_search_of_the_box_finds(
    index: str, bands: tuple[str, ...], at: float, text: str
) -> None:
    model = threshold(index, bands, at)
    first = ",".join(["1", *["0"] * (len(bands) - 1)])
    batch, threat = of_threshold(model, 6), parse_threat(text.replace("first", first), model.spec)
    ball = threat.around(batch.image, batch.seen)
    images = extreme_images(model, ball)
    assert all(torch.equal(ball.project(image), image) for image in images)
    exact = torch.stack([model(image).argmax(1) != batch.label for image in images]).any(0)
    steps = torch.cartesian_prod(
        *[torch.linspace(0, 1, 3 if len(bands) > 2 else 9)] * (1 if ball.spectrum is not None else len(bands))
    )
    found = torch.zeros_like(exact)
    for share in steps.view(len(steps), -1):
        inside = ball.low + (ball.high - ball.low) * share.view(1, -1, 1, 1)
        image = inside if ball.spectrum is None else ball.x + inside * ball.spectrum
        found |= model(image).argmax(1) != batch.label
    assert torch.equal(exact, found) and found.any() and not found.all()


def test_an_l2_ball_and_a_steep_ratio_have_no_corners() -> None:
    model = threshold("ndwi", ("B03", "B08"))
    batch = of_threshold(model)
    assert extreme_images(model, ThreatModel("l2", 0.1).around(batch.image, batch.seen)) == ()
    steep = threshold("ndwi", ("B03", "B08"), 1.0)
    assert extreme_images(steep, ThreatModel("linf", 0.1).around(batch.image, batch.seen)) == ()


@pytest.mark.parametrize(("index", "bands", "at"), RULED)
def test_a_threshold_that_is_attacked_to_its_exact_optimum_carries_no_flag(
    index: str, bands: tuple[str, ...], at: float
) -> None:
    model = threshold(index, bands, at)
    batch = of_threshold(model)
    found = SanityChecks()(model, batch, ThreatModel("linf", 0.02, low=0.0), Keys(0, batch.chips))
    assert found.flags == ()
    assert (
        found.accuracy["attack"] == pytest.approx(found.accuracy["exact"], abs=1e-3) and found.accuracy["exact"] < 0.9
    )


def test_an_attack_that_stops_short_of_the_exact_optimum_is_flagged() -> None:
    model = threshold("ndwi", ("B03", "B08"))
    batch = of_threshold(model, 32)
    found = SanityChecks(steps=1)(model, batch, ThreatModel("linf", 0.02, low=0.0), Keys(0, batch.chips))
    assert found.flags == ("weaker-than-exact",)


def test_an_index_behind_a_wrapper_is_broken_without_a_budget() -> None:
    index = threshold("ndwi", ("B03", "B08"))
    batch = of_threshold(index, 32)
    wrapped = Altered(before=None)
    wrapped.linear, wrapped.spec = index, index.spec  # type: ignore[assignment]
    found = SanityChecks()(wrapped, batch, ThreatModel("linf", 0.02, low=0.0), Keys(0, batch.chips))
    assert found.accuracy["unbounded"] < 0.05 and "unbounded-survives" not in found.flags


class Probable(nn.Module):
    """A model whose identity can be told: no lambda and no hook, which would be asked again each time."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = linear_model()
        self.spec = self.linear.spec

    def forward(self, image: Tensor) -> Tensor:
        return torch.softmax(self.linear(image), 1)


@pytest.fixture
def questions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was asked of a model, in order."""
    put: list[str] = []
    for name in ("check_model", "check_threat"):
        real = getattr(SanityChecks, name)
        monkeypatch.setattr(
            SanityChecks, name, lambda *a, real=real, name=name, **k: (put.append(name), real(*a, **k))[1]
        )
    return put


def test_answers_are_kept_and_asked_again_when_anything_changes(
    tmp_path: Path, questions: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Probable()

    def asked(*texts: str, ask: SanityChecks = QUICK_CHECKS) -> int:
        questions.clear()
        found = of_cases(model, *texts, ask=ask, home=tmp_path)
        assert all("probabilities" in flags for flags in found.values())
        return len(questions)

    assert asked("linf 1% reflectance") == 2 and asked("linf 1% reflectance") == 0
    assert asked("linf 2% reflectance") == 2, "another threat"
    assert asked("linf 1% reflectance", ask=SanityChecks(chips=2, queries=26, unbounded=25)) == 2, "other settings"
    with torch.no_grad():
        next(model.parameters()).add_(0.01)
    assert asked("linf 1% reflectance") == 2, "another model"
    monkeypatch.setattr("seawall.evaluation.sanity_flags.code_version", lambda: "of another checkout")
    assert asked("linf 1% reflectance") == 2, "other code"
    (tmp_path / "sanity_checks.json").write_text("torn")
    assert asked("linf 1% reflectance") == 2


def test_progress_names_the_sanity_checks_and_every_threat() -> None:
    told: list[str] = []
    of_cases(
        linear_model(),
        "linf 1% reflectance",
        "linf 2% reflectance",
        progress=lambda done, total, note: told.append(note),
    )
    assert all("sanity checks" in note for note in told) and any("linf 2% reflectance" in note for note in told)


def test_without_sanity_checks_every_number_says_so_and_no_pass_is_spent() -> None:
    batch, model = ground_batch(size=16), Altered(after=lambda z: z.softmax(1))
    with count_passes(model) as spent:
        plain = seawall.attack(model, batch, "linf 3% reflectance", method=["fgsm"], sanity_checks=False)  # type: ignore[arg-type]
    assert spent.forward < 10 * len(batch)
    assert [row["method"] for row in plain.table] == ["clean", "fgsm"]
    assert plain.table[1]["flags"] == "no-sanity-checks" and plain.table[0]["flags"] == ""
    asked = seawall.attack(model, batch, "linf 3% reflectance", method=["fgsm"])  # type: ignore[arg-type]
    assert "probabilities" in str(asked.table[1]["flags"]) and "no-sanity-checks" not in str(asked.table[1]["flags"])


def test_the_cost_of_the_sanity_checks_is_a_row_and_survives_a_resume(tmp_path: Path, questions: list[str]) -> None:
    batch, model = ground_batch(size=16), linear_model()
    first = seawall.attack(model, batch, "linf 3% reflectance", method=["fgsm"], out=tmp_path)
    line = first.table[-1]
    assert line["method"] == "sanity checks" and float(line["passes"] or 0) > 200 and float(line["seconds"] or 0) > 0
    assert questions == ["check_model", "check_threat"]
    again = seawall.attack(model, batch, "linf 3% reflectance", method=["fgsm"], out=tmp_path)
    assert again.table[-1] == line and len(questions) == 2
    rows = [r for r in RecordLog(tmp_path / "records.jsonl") if r.metric == "sanity_checks.passes"]
    assert [(r.method, r.chip, r.eps) for r in rows] == [("fgsm", "", (0.03,))]


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
    found = consistency_flags(held)
    assert found["r", "m", "fgsm", one] == ("weaker-than-noise", "black-box-wins", "transfer-wins")
    assert found["r", "m", "pgd", one] == ("black-box-wins", "transfer-wins")
    assert found["r", "m", "pgd", two] == ("not-monotone",)
    assert ("r", "m", "square", one) not in found and ("r", "m", "random", one) not in found
    flagged = {(r.method, r.threat): r.flags for r in with_consistency_flags(held)}
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
    found = consistency_flags([*rows("pgd", small, 60), *rows("pgd", large, 70)])
    assert found == ({("r", "m", "pgd", large): ("not-monotone",)} if comparable else {})
    assert consistency_flags([*rows("pgd", small, 70), *rows("pgd", large, 60)]) == {}


def test_one_good_attack_with_gradients_clears_the_others_of_hiding_them() -> None:
    held = [
        *rows("fgsm", "linf 1% reflectance", 90),
        *rows("pgd", "linf 1% reflectance", 40),
        *rows("square", "linf 1% reflectance", 50),
    ]
    assert consistency_flags(held) == {}


@pytest.mark.parametrize(
    "flag",
    ["zero-gradient", "vanishing-gradient", "random-forward", "probabilities", "black-box-wins", "transfer-wins",
     "more-steps-gain", "not-monotone", "unbounded-survives", "weaker-than-noise", "weaker-than-exact", "no-sanity-checks"],
)  # fmt: skip
def test_every_flag_is_explained_with_what_to_do(flag: str) -> None:
    found = explain(flag)
    assert found.id == flag and "marked this number" not in found.means and found.do.endswith(".")


def test_the_docs_have_a_section_for_every_flag() -> None:
    from seawall.report.flags import _FLAGS

    page = (Path(__file__).parents[2] / "docs" / "flags.md").read_text(encoding="utf-8")
    sections = {part.split("\n")[0]: part for part in page.split("\n## ")[1:]}
    assert set(sections) >= {flag.id for flag in _FLAGS} - {"partial-suite"}
    assert all(
        word in part for part in sections.values() for word in ("**Seen.**", "**Why it matters.**", "**What to do.**")
    )


def test_flags_reach_the_rows_of_the_one_line_attack() -> None:
    batch = ground_batch(size=16)
    blunt = Altered(before=lambda x: quantized(x) + 0 * x)
    result = seawall.attack(blunt, batch, "linf 3% reflectance", method=["pgd", "random"])  # type: ignore[arg-type]
    assert "zero-gradient" in str(result.table[1]["flags"]) and result.table[0]["flags"] == ""
    assert "square" in str(result.facts["flag zero-gradient"])

"""Models under natural perturbations: closed forms of the corruption error, cases of an evaluation, the verb, the recipe key."""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch

import seawall
from seawall import api
from seawall.corruptions.build import corruption_name, fitting_corruptions, parse_corruption
from seawall.errors import DataError, ModelError, RecipeError, UsageError
from seawall.evaluation import evaluate
from seawall.evaluation.case import CLEAN_CASE, Case, severity_cases
from seawall.evaluation.evaluate import evaluate_model
from seawall.evaluation.measurement import ChipSource, recipe_ids
from seawall.metrics.aggregate import aggregate_records
from seawall.metrics.consistency import consistency_flags
from seawall.metrics.corruption_error import LEAST_BASELINE_DROP, corruption_errors
from seawall.metrics.worst_case import worst_case
from seawall.models.water_index import WaterIndexThreshold
from seawall.pipeline.stress import distinct_severities, threshold_model
from seawall.pipeline.validate import validate_recipe
from seawall.recipe.recipe import make_recipe, read_recipe
from seawall.records import Record, RecordLog, read_records
from seawall.rng import Keys
from seawall.testing.corruptions import OPTICAL_CHIPS, RADAR_CHIPS, lake_chips
from seawall.types import Batch, ModelSpec, Stage
from terminal import cli

ROOT = Path(__file__).parents[2]
SPEC = ModelSpec(OPTICAL_CHIPS.bands, ("land", "water"), "reflectance", 10.0)
NET = WaterIndexThreshold("ndwi")(SPEC)
RADAR = WaterIndexThreshold("vv")(ModelSpec(("VV", "VH"), ("land", "water"), "sigma0_db", 10.0))


def rows_of(model: str, method: str, severity: float | None, counts: dict[str, tuple[int, int, int]]) -> list[Record]:
    """Records of water counts (tp, fp, fn) per chip; every chip is its own group."""
    found = []
    for chip, parts in counts.items():
        threat = "" if severity is None else f"severity {severity!r}"
        facts = () if severity is None else (severity, 2 * severity, "depth", "m")
        base = Record("r", model, method, threat, chip, chip, "", "", None, 0)
        base = replace(base, **dict(zip(("severity", "level", "quantity", "level_unit"), facts, strict=False)))
        found += [base.measured(m, v, 100, "water") for m, v in zip(("tp", "fp", "fn"), parts, strict=True)]
        found += [base.measured("pixels.clean", 100, 100)] if severity else []
        found.append(base.measured("pixels", 50 if severity == 1.0 else 100, 100))
    return found


def made_up(own: tuple[float, ...], base: tuple[float, ...], method: str = "haze") -> list[Record]:
    """Records of a model and a baseline with these IoU of the clean images and at severities .5 and 1."""
    found = []
    for model, ious in (("net", own), ("index", base)):
        for severity, iou in zip((None, 0.5, 1.0), ious, strict=True):
            hits = round(100 * iou)
            found += rows_of(model, "clean" if severity is None else method, severity, {"a": (hits, 100 - hits, 0)})
    return found


def test_the_corruption_error_is_that_of_the_equation() -> None:
    (one, mean) = corruption_errors(made_up((0.9, 0.8, 0.5), (0.8, 0.6, 0.4)), "net", "index", "water")
    assert one.error.value == pytest.approx((0.2 + 0.5) / (0.4 + 0.6))
    assert one.relative_error.value == pytest.approx((0.1 + 0.4) / (0.2 + 0.4))
    assert (one.clean.value, one.drop.value) == (pytest.approx(0.9), pytest.approx(0.9 - 0.65))
    assert [facts.severity for facts in one.levels] == [0.5, 1.0] and one.levels[1].level == 2.0
    assert one.kept == 0.5 and one.drop.low is None, "one group leaves nothing to redraw"
    assert mean.corruption == "" and mean.error.value == one.error.value


def test_a_baseline_against_itself_is_one_and_severity_zero_takes_no_part() -> None:
    rows = made_up((0.9, 0.8, 0.5), (0.8, 0.6, 0.4)) + rows_of("net", "haze", 0.0, {"a": (90, 10, 0)})
    own = corruption_errors(rows, "index", "index", "water")[0]
    assert own.error.value == own.relative_error.value == pytest.approx(1.0)
    assert len(corruption_errors(rows, "net", "index", "water")[0].levels) == 2


def test_the_mean_is_over_corruptions_and_leaves_out_the_undefined() -> None:
    rows = made_up((0.9, 0.8, 0.5), (0.8, 0.6, 0.4))
    gains = made_up((0.9, 0.8, 0.5), (0.8, 0.8, 0.8 - LEAST_BASELINE_DROP), "ice")
    first, second, mean = corruption_errors([*rows, *gains], "net", "index", "water")
    assert second.relative_error.value is None and second.relative_error.low is None
    assert mean.relative_error.value == first.relative_error.value
    assert mean.error.value == pytest.approx((0.7 / 1.0 + 0.7 / 0.41) / 2)
    alone = corruption_errors(rows, "net", "", "water")[0]
    assert alone.error.value is None and alone.drop.value == first.drop.value


def test_intervals_redraw_groups_the_same_for_both_models() -> None:
    counts = {"a": (90, 10, 0), "b": (20, 40, 40), "c": (60, 20, 20)}
    rows = [
        r
        for model in ("net", "index")
        for s in (None, 1.0)
        for r in rows_of(model, "haze" if s else "clean", s, counts)
    ]
    one = corruption_errors(rows, "net", "index", "water")[0]
    assert (one.error.value, one.error.low, one.error.high) == (1.0, 1.0, 1.0), "paired draws of equal models"
    assert one.clean.low is not None and one.clean.low < (one.clean.value or 0) < (one.clean.high or 0)


def test_a_corruption_on_other_chips_or_without_its_baseline_is_refused() -> None:
    rows = made_up((0.9, 0.8, 0.5), (0.8, 0.6, 0.4))
    with pytest.raises(DataError, match=r"index haze severity 1\.0"):
        corruption_errors([r for r in rows if (r.model, r.severity) != ("index", 1.0)], "net", "index", "water")
    with pytest.raises(DataError, match="same chips"):
        corruption_errors([*rows, *rows_of("net", "haze", 1.0, {"b": (1, 1, 1)})], "net", "index", "water")


def measured(log: RecordLog, cases: list[Case], batch: Batch | None = None) -> list[Record]:
    batch = lake_chips(OPTICAL_CHIPS, 3, 48) if batch is None else batch
    return evaluate_model(NET, [batch], log=log, recipe="r", name="net", attacks=cases, seed=3)


def haze(severity: float) -> Case:
    return Case("haze", corruption=parse_corruption("haze", OPTICAL_CHIPS), severity=severity)


def test_severity_zero_is_the_clean_row_to_the_bit(tmp_path: Path) -> None:
    rows = measured(RecordLog(tmp_path / "log"), [CLEAN_CASE, haze(0.0)])
    values = [
        {(r.chip, r.metric, r.klass): r.value for r in rows if r.method == method and r.metric != "pixels.clean"}
        for method in ("clean", "haze")
    ]
    assert values[0] == values[1] and len(values[0]) > 50
    assert {r.severity for r in rows if r.method == "haze"} == {0.0}


def test_counts_are_of_the_corrupted_batch_and_the_row_holds_the_level(tmp_path: Path) -> None:
    wedge = parse_corruption("nodata-wedge", OPTICAL_CHIPS)
    batch = lake_chips(OPTICAL_CHIPS, 3, 48)
    cases = [Case("nodata-wedge", measures=("counts", "sizes"), corruption=wedge, severity=0.5)]
    log = RecordLog(tmp_path / "log")
    rows = measured(log, cases, batch)
    after = wedge(batch, 0.5, Keys(3, batch.chips, ("corrupt", "nodata-wedge")))
    found = {(r.chip, r.metric, r.klass): r for r in rows}
    for i, chip in enumerate(batch.chips):
        assert found[chip, "pixels", ""].value == float(after.valid[i].sum()) < float(batch.valid[i].sum())
        assert found[chip, "pixels.clean", ""].value == float(batch.valid[i].sum())
        water = float((after.valid[i] & (after.label[i] == 1)).sum()) * 1e-4
        assert found[chip, "area.true_km2", "water"].value == pytest.approx(water), "objects of the corrupted label"
    [row] = [r for r in read_records(log.path) if r.key == found[batch.chips[0], "pixels", ""].key]
    assert row.corruption == (0.5, 0.3, "share without data", "")
    kept = next(r for r in aggregate_records(rows) if r.metric == "pixels.kept_share")
    assert kept.value == pytest.approx(float(after.valid.sum() / batch.valid.sum())) and kept.severity == 0.5


@dataclass(frozen=True)
class Draws:
    """Notes the field that it draws."""

    quantity: ClassVar[str] = "nothing"
    unit: ClassVar[str] = ""
    stage: ClassVar[Stage] = "product"
    seen: ClassVar[list[torch.Tensor]] = []

    def level(self, severity: float) -> float:
        return severity

    def __call__(self, batch: Batch, severity: float, keys: Keys) -> Batch:
        self.seen.append(keys.uniform((4,)))
        return replace(batch, image=batch.image.clone())


def test_all_severities_share_one_field(tmp_path: Path) -> None:
    cases = [Case(n, corruption=Draws(), severity=s) for n, s in (("a", 0.2), ("a", 0.9), ("b", 0.2))]
    Draws.seen.clear()
    measured(RecordLog(tmp_path / "log"), cases)
    first, second, third = Draws.seen
    assert torch.equal(first, second) and torch.equal(first, third), "nor does the name in the rows change it"
    assert torch.equal(first, Keys(3, lake_chips(OPTICAL_CHIPS, 3, 48).chips, ("corrupt", "Draws")).uniform((4,)))


def test_a_case_is_an_attack_or_a_corruption_with_a_severity() -> None:
    one = parse_corruption("haze", OPTICAL_CHIPS)
    for wrong in (
        {"corruption": one},
        {"severity": 0.5},
        {"corruption": one, "severity": 1.5},
        {"corruption": one, "severity": math.nan},
    ):
        with pytest.raises(UsageError, match="severity"):
            Case("haze", **wrong)  # type: ignore[arg-type]


def test_the_resume_key_covers_settings_and_severity() -> None:
    of = recipe_ids(NET, ChipSource.of_batch(lake_chips(OPTICAL_CHIPS, 1, 48)), 0, None)
    mild = parse_corruption("haze worst=0.4", OPTICAL_CHIPS)
    cases = [haze(0.5), haze(1.0), Case("haze", corruption=mild, severity=1.0), CLEAN_CASE]
    assert len({of(case) for case in cases}) == 4 and of(haze(0.5)) == of(haze(0.5))


def test_a_corruption_that_makes_nan_is_refused(tmp_path: Path) -> None:
    class Nan(Draws):
        def __call__(self, batch: Batch, severity: float, keys: Keys) -> Batch:
            return replace(batch, image=batch.image * float("nan"))

    with pytest.raises(ModelError, match="NaN"):
        measured(RecordLog(tmp_path / "log"), [Case("nan", corruption=Nan(), severity=0.5)])


def test_corruptions_take_no_part_in_the_worst_case_of_attacks(tmp_path: Path) -> None:
    rows = measured(RecordLog(tmp_path / "log"), [CLEAN_CASE, haze(1.0)])
    assert not worst_case(rows)


def test_less_harm_at_more_severity_is_a_note() -> None:
    rows = [replace(r, value=100.0) if r.metric == "pixels" else r for r in made_up((0.9, 0.5, 0.8), (0.8, 0.6, 0.4))]
    assert consistency_flags(rows) == {("r", "net", "haze", "severity 1.0"): ("milder-when-severe",)}


def test_every_corruption_fits_or_has_a_reason() -> None:
    fit, refused = fitting_corruptions(OPTICAL_CHIPS)
    assert "clouds" in fit and "composition" not in {*fit, *refused}
    assert "decibels" in refused["speckle"] and set(fitting_corruptions(RADAR_CHIPS)[0]) & set(refused) == set(refused)
    assert corruption_name(" haze worst=0.4 +  shot-noise ") == "haze worst=0.4 + shot-noise"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("stress") / "chips"
    recipe = {"name": "s", "data": {"count": 4, "size": 64, "bands": list(OPTICAL_CHIPS.bands)}}
    from seawall.pipeline.context import RunContext
    from seawall.pipeline.data import load_chips

    run = RunContext(make_recipe(recipe), home, "cpu", True, lambda *_: None)
    return load_chips(run, home)[0].root


def test_the_verb_makes_a_row_per_corruption_and_resumes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"corruption": ("haze", "clouds + shot-noise"), "severity": (1.0, 0.5), "out": tmp_path}
    whole = seawall.stress(NET, folder, **given)  # type: ignore[arg-type]
    assert {row["corruption"] for row in whole.table} == {"haze", "clouds + shot-noise", "mean"}
    assert (
        list(whole.table[0])[:4] == ["corruption", "clean", "at 0.5", "at 1"] and whole.facts["baseline"] == "mndwi > 0"
    )
    lines = (tmp_path / "records.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "records.jsonl").write_text("".join(lines[: len(lines) // 2]) + lines[-1][:20])  # killed half way
    calls = []
    plain = evaluate.confusion
    monkeypatch.setattr(evaluate, "confusion", lambda *args: calls.append(1) or plain(*args))
    again = seawall.stress(NET, folder, **given)  # type: ignore[arg-type]
    assert again.table == whole.table and 0 < len(calls) < 10, "what the log holds is not measured again"
    calls.clear()
    assert seawall.stress(NET, folder, **given).table == whole.table and not calls  # type: ignore[arg-type]
    other = seawall.stress(NET, folder, **{**given, "corruption": ("haze worst=0.4",), "seed": 0})  # type: ignore[arg-type]
    assert calls and other.table[0]["at 1"] == next(r for r in whole.table if r["corruption"] == "haze")["at 0.5"]


def test_the_verb_takes_modules_and_batches_and_lists_what_does_not_fit() -> None:
    batch = lake_chips(RADAR_CHIPS, 2, 48)
    done = seawall.stress(RADAR, batch, severity=(1.0,))
    assert done.facts["baseline"] == "vv < -13.45" and "reflectance" in str(done.facts["left out haze"])
    assert {"speckle", "wind", "mean"} <= {row["corruption"] for row in done.table}
    assert all(row["ce"] == pytest.approx(1.0) for row in done.table if row["ce"] is not None), (
        "the model is its baseline"
    )
    drops = [row["drop"] for row in done.table[:-1]]
    assert drops == sorted(drops, key=lambda d: -(d or 0.0))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"severity": (1.2,)}, "from 0 to 1"), ({"severity": (0.0,)}, "above 0"), ({"severity": (math.nan,)}, "severity"), ({"severity": ()}, "above 0"),
        ({"corruption": ("hase",)}, "did you mean 'haze'"), ({"corruption": ("speckle",)}, "decibels"), ({"corruption": ("haze wurst=1",)}, "worst"),
        ({"corruption": ("haze", " haze")}, "twice"), ({"baseline": "mndwi >= 0"}, "baseline"), ({"baseline": "mndwi < 0"}, "above"),
        ({"baseline": "nope > 0"}, "nope"), ({"part": "train"}, "part"),
    ],
)  # fmt: skip
def test_wrong_words_are_one_line(given: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        seawall.stress(NET, lake_chips(OPTICAL_CHIPS, 1, 48), **given)  # type: ignore[arg-type]


def test_without_a_fitting_corruption_or_baseline(monkeypatch: pytest.MonkeyPatch) -> None:
    assert threshold_model("", replace(SPEC, classes=("field", "forest", "town"))) is None
    with pytest.raises(ModelError, match="VV"):
        threshold_model("vv < -17", SPEC)
    assert distinct_severities((1, 0.5, 0.5)) == (0.5, 1.0)
    monkeypatch.setattr("seawall.pipeline.stress.fitting_corruptions", lambda chips: ({}, {"haze": "no"}))
    with pytest.raises(UsageError, match="expected a corruption that fits"):
        seawall.stress(NET, lake_chips(OPTICAL_CHIPS, 1, 48))


def test_recipes_without_corruptions_keep_their_ids() -> None:
    assert read_recipe(ROOT / "recipes/demo.toml").id == "demo-a1bb8b6c"
    assert read_recipe(ROOT / "recipes/hls.toml").id == "hls-4f4a91a5"
    plain, stressed = make_recipe({"name": "x"}), make_recipe({"name": "x", "corruptions": [{"name": "haze"}]})
    assert plain.id != stressed.id
    assert stressed.id != make_recipe({"name": "x", "corruptions": [{"name": "haze", "severities": [1.0]}]}).id


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ([{"name": "haze", "severities": [0.0]}], "severities"), ([{"name": "haze", "severities": [0.5, 0.5]}], "once"),
        ([{"name": "haze"}, {"name": "haze"}], "called"), ([{"name": "haze", "severitys": [1]}], "severities"),
    ],
)  # fmt: skip
def test_a_wrong_section_is_refused(sections: list[dict[str, object]], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        make_recipe({"name": "x", "corruptions": sections})


def test_a_recipe_names_a_corruption_of_its_sensor(tmp_path: Path) -> None:
    for name, says in (("speckle", "decibels"), ("hase", "did you mean 'haze'")):
        (tmp_path / "r.toml").write_text(f'name = "x"\n[[corruptions]]\nname = "{name}"\n')
        with pytest.raises(UsageError, match=says):
            api.run(tmp_path / "r.toml", out=tmp_path)
        assert not (tmp_path / "chips").exists(), "refused before chips are made"


def test_the_recipes_with_corruptions_are_valid_before_there_are_chips() -> None:
    for name, count in (("stress", 8), ("stress-hls", 32)):
        recipe = read_recipe(ROOT / f"recipes/{name}.toml")
        validate_recipe(recipe)
        assert len(recipe.corruptions) == count


def test_a_run_measures_corruptions_and_its_page_shows_them(tmp_path: Path) -> None:
    changes = [
        "data.count=8",
        "data.size=64",
        "data.frame=0",
        "training.settings.epochs=1",
        "training.settings.steps_per_epoch=2",
    ]
    done = api.run(ROOT / "recipes/stress.toml", out=tmp_path, changes=changes)
    assert [row["method"] for row in done.table] == ["clean"] * 3, "hundreds of rows are no summary"
    run = Path(str(done.facts["report"])).parent
    page = (run / "report.html").read_text()
    assert (
        page.count('id="corrupted-') == 4
        and "haze: added aerosol optical depth" in page
        and "CE is relative to MNDWI" in page
    )
    rows = list(read_records(run / "records.jsonl"))
    assert {r.model for r in rows if r.severity} == {"unet", "mndwi", "ndwi"}
    assert {r.severity for r in rows if r.method == "haze + shot-noise"} == {0.5, 1.0}
    facts = [json.loads(path.read_text()) for path in (run / "examples").glob("*.json")]
    assert len(facts) == 4 and all(f["severity"] == 1.0 and f["quantity"] for f in facts)
    before = (run / "records.jsonl").read_bytes()
    api.run(ROOT / "recipes/stress.toml", out=tmp_path, changes=changes)
    assert (run / "records.jsonl").read_bytes() == before and (run / "report.html").read_text() == page


def test_the_help_names_every_option() -> None:
    text = cli("stress", "--help").out
    assert all(option in text for option in ("--corruption", "--severity", "--baseline", "--part", "--seed", "--out"))


def test_old_rows_have_no_severity(tmp_path: Path) -> None:
    row = {
        "recipe": "r",
        "model": "m",
        "method": "clean",
        "threat": "",
        "chip": "c",
        "group": "g",
        "metric": "tp",
        "klass": "water",
        "value": 1.0,
        "n": 4,
    }
    (tmp_path / "old.jsonl").write_text(json.dumps(row) + "\n")
    [old] = read_records(tmp_path / "old.jsonl")
    assert old.corruption == (None, None, "", "")
    log = RecordLog(tmp_path / "new.jsonl")
    log.append([replace(old, severity=0.0, level=0.0, quantity="q", method="haze", threat="severity 0.0")])
    [new] = log
    assert (new.severity, new.level) == (0.0, 0.0), "a zero is a value, not an absence"


def test_every_severity_case_counts_only() -> None:
    cases = severity_cases({"haze": parse_corruption("haze", OPTICAL_CHIPS)}, (0.2, 1.0))
    assert [(c.method, c.severity, c.measures) for c in cases] == [
        ("haze", 0.2, ("counts",)),
        ("haze", 1.0, ("counts",)),
    ]

"""One way of measuring for every verb: what guards its rows, what it holds in memory, whom it asks."""

import gc
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from seawall import api
from seawall.attacks.pgd import PGD
from seawall.attacks.suites import named_attacks as attacks_of
from seawall.attacks.suites import parse_suite
from seawall.data.chips import ChipFolder
from seawall.data.index import ChipHeader
from seawall.data.loader import whole_chips
from seawall.data.writer import ChipWriter
from seawall.evaluation import measurement, sanity_flags
from seawall.evaluation.case import CLEAN_CASE, MEASURES, Case
from seawall.evaluation.measurement import (
    ChipSource,
    check_and_evaluate,
    most_mixed_chips,
    recipe_ids,
    records_of_cases,
    settings_text,
)
from seawall.evaluation.sanity_checks import SanityChecks
from seawall.models.water_index import WaterIndexThreshold
from seawall.models.weights import save_model, set_split
from seawall.pipeline import trained_model
from seawall.records import RecordLog, read_records
from seawall.rng import Keys
from seawall.split_record import SplitRecord
from seawall.threat.model import ThreatModel
from seawall.types import Batch, ModelSpec, SegmentationModel

HEADER = ChipHeader(("B03", "B08"), "reflectance", ("land", "water"), 10.0)
SPEC = ModelSpec(("B03", "B08"), ("land", "water"), "reflectance", 10.0)
THREAT = ThreatModel("linf", 0.01)
COUNT = 30


def say(case: Case):
    return lambda done, total, note: None


@dataclass(frozen=True)
class Same:
    """An attack that does nothing, with a setting."""

    setting: float = 1.0

    def __call__(self, model: SegmentationModel, batch: Batch, threat: ThreatModel, keys: Keys) -> Tensor:
        return batch.image.clone()


@pytest.fixture(scope="module")
def chips(tmp_path_factory: pytest.TempPathFactory) -> ChipFolder:
    writer, rng = ChipWriter(tmp_path_factory.mktemp("m") / "chips", HEADER), np.random.default_rng(0)
    for i in range(COUNT):
        label = (rng.random((12, 12)) < (i + 1) / (COUNT + 2)).astype(np.uint8)
        water = np.where(label == 1, 0.02, 0.3) + rng.normal(0, 0.05, (12, 12))
        writer.write(f"c{i:02d}", f"g{i % 5}", np.stack([np.full_like(water, 0.1), water]).astype(np.float32), label)
    return writer.finish()


def test_memory_is_bounded_by_a_batch(chips: ChipFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted, not weighed: how many batches live at once, and how many chips are read before one is measured."""
    alive: weakref.WeakSet[Tensor] = weakref.WeakSet()
    most, read = 0, 0

    def counted(*args: object, **more: object) -> Iterator[Batch]:
        nonlocal most, read
        for batch in whole_chips(*args, **more):  # type: ignore[arg-type]
            alive.add(batch.image)
            read += len(batch)
            gc.collect()
            most = max(most, len(alive))
            yield batch

    monkeypatch.setattr(measurement, "whole_chips", counted)
    model = WaterIndexThreshold("ndwi")(SPEC)
    save_model(tmp_path / "m.safetensors", model)
    done: list[tuple[str, int, int]] = []
    api.evaluate(
        tmp_path / "m.safetensors", chips.root, out=tmp_path / "e", progress=lambda *said: done.append(said[:3])
    )
    assert most <= 2 and read == COUNT and len(done) == -(-COUNT // 8)
    assert done[-1] == ("clean", 4, 4)
    read = 0
    api.attack(tmp_path / "m.safetensors", chips.root, "linf 1% reflectance", method=["fgsm"], out=tmp_path / "a")
    assert most <= 2
    assert read == 2 * COUNT + SanityChecks().chips, "each case once, and a few chips for the sanity checks"


def test_half_a_measurement_is_gone_on_with(chips: ChipFolder, tmp_path: Path) -> None:
    model, log = WaterIndexThreshold("ndwi")(SPEC), RecordLog(tmp_path / "r.jsonl")
    some = ChipSource.of_folder(chips, chips.ids[:10])
    every = ChipSource.of_folder(chips, chips.ids)
    asked: list[str] = []

    def read(ids: Sequence[str]) -> Iterator[Batch]:
        asked.extend(ids)
        return whole_chips(chips, ids)

    common = {"log": log, "recipe": lambda case: "r", "name": "n", "seed": 0, "checks": None, "progress": say}
    check_and_evaluate(model, some, [CLEAN_CASE], **common)
    check_and_evaluate(model, replace(every, read=read), [CLEAN_CASE], **common)
    assert asked == list(chips.ids[10:])
    check_and_evaluate(model, replace(every, read=read), [CLEAN_CASE], **common)
    assert len(asked) == COUNT - 10


def test_sanity_checks_take_the_most_mixed_chips_and_run_only_where_an_attack_is_missing(
    chips: ChipFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[tuple[str, ...]] = []

    def ask(model, batches, cases, seed, how, **more):  # type: ignore[no-untyped-def]
        heard.append(tuple(chip for batch in batches for chip in batch.chips))
        return [replace(case, flags=("zero-gradient",)) if case.threat is not None else case for case in cases]

    monkeypatch.setattr(measurement, "with_sanity_flags", ask)
    model, log = WaterIndexThreshold("ndwi")(SPEC), RecordLog(tmp_path / "r.jsonl")
    source = ChipSource.of_folder(chips, chips.ids, lambda chip: ("seen",) if chip == "c03" else ())
    common = {
        "log": log,
        "recipe": lambda case: "r",
        "name": "n",
        "seed": 0,
        "checks": SanityChecks(chips=3),
        "progress": say,
    }
    check_and_evaluate(model, source, [CLEAN_CASE], **common)
    assert heard == [], "clean images need no sanity checks"
    cases = [CLEAN_CASE, Case("same", Same(), THREAT)]
    check_and_evaluate(model, source, cases, **common)
    assert heard == [most_mixed_chips(chips, chips.ids, 3)]
    shares = [abs(chips.row(id_).share(1) - 0.5) for id_ in most_mixed_chips(chips, chips.ids, COUNT)]
    assert shares == pytest.approx(sorted(shares))
    check_and_evaluate(model, source, cases, **common)
    assert len(heard) == 1
    for row in read_records(tmp_path / "r.jsonl"):
        wanted = (("zero-gradient",) if row.method == "same" else ()) + (("seen",) if row.chip == "c03" else ())
        assert row.flags == wanted


def test_rows_are_keyed_by_all_that_decides_them(chips: ChipFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    model = WaterIndexThreshold("ndwi")(SPEC)
    case = Case("same", Same(), THREAT)

    def key(
        case: Case = case, net: torch.nn.Module = model, ids: Sequence[str] = chips.ids, seed: int = 0,
        folder: ChipFolder = chips, checks: SanityChecks | None = None,
    ) -> str:  # fmt: skip
        return recipe_ids(net, ChipSource.of_folder(folder, ids), seed, checks)(case)

    base = key()
    assert base == key()
    learned = WaterIndexThreshold("ndwi")(SPEC)
    set_split(learned, SplitRecord({"train": ("a" * 16,)}, {}))
    rows = [replace(row, label_sha256="0" * 64) if row.id == "c07" else row for row in chips.rows]
    moved = [replace(row, group="elsewhere") if row.id == "c07" else row for row in chips.rows]
    others = [
        key(replace(case, attack=Same(2.0))),
        key(replace(case, attack=PGD())),
        key(replace(case, threat=ThreatModel("linf", 0.02))),
        key(replace(case, label_free=True)),
        key(replace(case, measures=tuple(MEASURES)[:2])),
        key(net=WaterIndexThreshold("ndwi", threshold=0.1)(SPEC)),
        key(net=learned),
        key(ids=chips.ids[:-1]),
        key(seed=1),
        key(folder=ChipFolder(chips.root, chips.header, rows)),
        key(folder=ChipFolder(chips.root, chips.header, moved)),
        key(checks=SanityChecks()),
        key(CLEAN_CASE),
    ]
    monkeypatch.setattr(measurement, "code_version", lambda: "another code")
    assert len({base, *others, key()}) == len(others) + 2
    assert key(CLEAN_CASE) == key(CLEAN_CASE, checks=SanityChecks()), "clean images need no sanity checks"


def test_two_settings_of_a_suite_do_not_share_rows(chips: ChipFolder, tmp_path: Path) -> None:
    save_model(tmp_path / "m.safetensors", WaterIndexThreshold("ndwi")(SPEC))
    few = ChipWriter(tmp_path / "few", HEADER)
    for id_ in chips.ids[10:13]:
        few.relabel(chips, id_, chips.read(id_).label.astype(np.uint8))
    folder = few.finish()

    def attacked(klass: str, out: str) -> list[dict[str, object]]:
        done = api.attack(
            tmp_path / "m.safetensors", folder.root, "linf 5% reflectance", suite=f"seawall passes=4 klass={klass}", out=tmp_path / out,
        )  # fmt: skip
        return [{key: row[key] for key in ("method", "iou.pooled", "accuracy")} for row in done.table]

    water, land = attacked("water", "a"), attacked("land", "a")
    assert land == attacked("land", "alone") and water == attacked("water", "alone")
    methods = [
        name for klass in ("water", "land") for name, _ in attacks_of(parse_suite(f"seawall passes=4 klass={klass}"))
    ]
    recipes = {row.recipe for row in read_records(tmp_path / "a/records.jsonl") if row.method in methods}
    assert len(recipes) == 2


def test_rows_of_other_chips_cases_and_recipes_stay_out(chips: ChipFolder, tmp_path: Path) -> None:
    model, log = WaterIndexThreshold("ndwi")(SPEC), RecordLog(tmp_path / "r.jsonl")
    cases = [CLEAN_CASE, Case("same", Same(), THREAT)]
    for source, seed in (
        (ChipSource.of_folder(chips, chips.ids[:3]), 0),
        (ChipSource.of_folder(chips, chips.ids[2:5]), 1),
    ):
        recipe = recipe_ids(model, source, seed, None)
        check_and_evaluate(model, source, cases, log=log, recipe=recipe, name="n", seed=seed, checks=None, progress=say)
    mine = records_of_cases(log, cases, recipe, source)
    assert {row.chip for row in mine} == set(chips.ids[2:5]) and len({row.recipe for row in mine}) == 1
    assert {row.method for row in records_of_cases(log, [CLEAN_CASE], recipe, source)} == {"clean"}


def test_flags_of_chips_reach_their_numbers(chips: ChipFolder, tmp_path: Path) -> None:
    marks = {"c01": ("not-physical",), "c02": ("unlabelled",)}
    folder = ChipFolder(chips.root, chips.header, [replace(row, flags=marks.get(row.id, ())) for row in chips.rows[:4]])
    model, log = WaterIndexThreshold("ndwi")(SPEC), RecordLog(tmp_path / "r.jsonl")
    source = ChipSource.of_folder(folder, folder.ids, lambda chip: ("seen",) if chip in ("c01", "c03") else ())
    check_and_evaluate(
        model, source, [CLEAN_CASE], log=log, recipe=lambda case: "r", name="n", seed=0, checks=None, progress=say
    )
    found = {row.chip: row.flags for row in log}
    assert found == {"c00": (), "c01": ("not-physical", "seen"), "c02": (), "c03": ("seen",)}


def test_settings_are_read_to_the_bottom() -> None:
    class Plain:
        def __init__(self, size: float) -> None:
            self.size = size

    assert settings_text(Plain(1.0)) == settings_text(Plain(1.0)) != settings_text(Plain(2.0))
    assert settings_text(torch.zeros(2000)) != settings_text(torch.cat([torch.zeros(1999), torch.ones(1)]))
    assert settings_text({"a": Same(), "b": 1}) == settings_text({"b": 1, "a": Same()})
    assert settings_text(torch.nn.Linear(2, 2)) != settings_text(torch.nn.Linear(2, 2)), "weights are drawn anew"
    assert settings_text(len) == settings_text(len) != settings_text(sum)
    assert " at 0x" not in settings_text(PGD())


def test_run_evaluate_and_attack_have_one_loop() -> None:
    from seawall.pipeline import evaluation

    assert trained_model.check_and_evaluate is evaluation.check_and_evaluate is check_and_evaluate
    assert measurement.with_sanity_flags is sanity_flags.with_sanity_flags

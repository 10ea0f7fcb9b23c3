"""Records survive killed writers, never hold NaN, and resume by key."""

import json
import math
from pathlib import Path

import pytest

from seawall.errors import RunError
from seawall.records import Record, RecordLog, read_records


def row(chip: str = "a", value: float | None = 1.0) -> Record:
    return Record("r", "unet", "clean", "", chip, "g", "tp", "water", value, 4, flags=("x",))


def test_rows_come_back_as_they_went(tmp_path: Path) -> None:
    log = RecordLog(tmp_path / "records.jsonl")
    log.append([row("a"), row("b", None)])
    assert list(log) == [row("a"), row("b", None)]


def test_a_key_that_is_there_is_not_written_twice(tmp_path: Path) -> None:
    RecordLog(tmp_path / "r.jsonl").append([row("a", 1.0)])
    again = RecordLog(tmp_path / "r.jsonl")
    assert row("a", 9.0).key in again
    again.append([row("a", 9.0), row("b")])
    assert [r.chip for r in again] == ["a", "b"]
    assert next(iter(again)).value == 1.0


def test_a_torn_last_line_is_dropped_and_the_log_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    RecordLog(path).append([row("a"), row("b")])
    path.write_bytes(path.read_bytes()[:-20])
    log = RecordLog(path)
    assert [r.chip for r in log] == ["a"]
    log.append([row("b")])
    assert [r.chip for r in read_records(path)] == ["a", "b"]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_undefined_is_none_never_nan(tmp_path: Path, value: float) -> None:
    with pytest.raises(RunError, match="None"):
        RecordLog(tmp_path / "r.jsonl").append([row("a", value)])


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps({"no": "record"}) + "\n")
    with pytest.raises(RunError, match=r"r\.jsonl:1"):
        RecordLog(path)


def test_a_threat_travels_as_values(tmp_path: Path) -> None:
    threat = {"norm": "linf", "eps": (0.01, 0.02), "unit": "reflectance", "bands": ("B03",), "region": "clouds:0.3"}
    attacked = Record("r", "unet", "pgd", "linf 1%,2% reflectance", "a", "g", "tp", "water", 1.0, 4, **threat)
    log = RecordLog(tmp_path / "r.jsonl")
    log.append([attacked, row("a")])
    assert list(log) == [attacked, row("a")]
    assert "eps" not in (tmp_path / "r.jsonl").read_text().splitlines()[1], "rows without an adversary stay short"
    assert attacked.measured("fp", 2.0, 4).eps == (0.01, 0.02)


def test_an_attack_of_an_older_version_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    old = {"recipe": "r", "model": "m", "method": "pgd", "threat": "linf 1% reflectance", "chip": "a", "group": "g"}
    old |= {"metric": "tp", "klass": "water", "value": 1.0, "n": 4}
    path.write_text(json.dumps(old) + "\n")
    with pytest.raises(RunError, match=r"r\.jsonl:1: expected an attack's row with norm.*measure again"):
        list(read_records(path))
    path.write_text(json.dumps(old | {"threat": "", "method": "clean"}) + "\n")
    assert len(list(read_records(path))) == 1

"""The matrix: what is measured, what is skipped, what is left as it was."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from seawall.attacks.fgsm import FGSM
from seawall.errors import DataError, ModelError, UsageError
from seawall.evaluation.case import CLEAN_CASE, Case
from seawall.evaluation.evaluate import NON_FINITE, evaluate_model, missing_chips, write_examples
from seawall.evaluation.examples import write_example
from seawall.metrics.aggregate import aggregate_records
from seawall.metrics.worst_case import worst_case
from seawall.records import Record, RecordLog
from seawall.rng import Keys
from seawall.threat.model import ThreatModel
from seawall.threat.parser import parse_threat
from seawall.types import Batch, ModelSpec, SegmentationModel

SPEC = ModelSpec(("B04", "B03", "B02"), ("land", "water"), "reflectance", 10.0)
GROUPS = {f"c{i}": "river" if i < 3 else "pond" for i in range(6)}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.spec = SPEC
        self.norm = nn.BatchNorm2d(3)
        self.conv = nn.Conv2d(3, 2, 3, padding=1)
        self.calls = 0

    def forward(self, image: Tensor) -> Tensor:
        self.calls += 1
        # image by image: a convolution over a smaller batch may differ in the last bits, and resuming must not
        return torch.cat([self.conv(one[None]) for one in self.norm(image)])


def chips(count: int = 6, size: int = 24) -> Batch:
    g = torch.Generator().manual_seed(3)
    image = torch.rand(count, 3, size, size, generator=g)
    label = (image.mean(1) + 0.1 * torch.rand(count, size, size, generator=g) > 0.55).long()
    seen = torch.ones(count, size, size, dtype=torch.bool)
    seen[1, :5] = False
    valid = seen & (torch.rand(count, size, size, generator=g) > 0.1)
    valid[4] = False  # a chip without a label that counts
    return Batch(
        image.masked_fill(~seen[:, None], 0.0),
        label.masked_fill(~valid, -1),
        seen,
        valid,
        tuple(f"c{i}" for i in range(count)),
    )


def shift(model: SegmentationModel, batch: Batch, threat: ThreatModel, keys: Keys) -> Tensor:
    """An attack in one gradient step, with a random start from each chip's own stream."""
    assert all(not m.training for m in model.modules())
    image = (batch.image + 0.01 * keys.uniform(batch.image.shape[1:], -1, 1)).detach().requires_grad_()
    loss = nn.functional.cross_entropy(model(image), batch.label.masked_fill(~batch.valid, 0), reduction="none")
    (grad,) = torch.autograd.grad(loss[batch.valid].sum() if batch.valid.any() else (image * 0).sum(), image)
    return torch.where(batch.seen[:, None], batch.image + 0.05 * grad.sign(), batch.image)


def dim(model: SegmentationModel, batch: Batch, threat: ThreatModel, keys: Keys) -> Tensor:
    return torch.where(batch.seen[:, None], batch.image * 0.75, batch.image)


STEP = parse_threat("linf 5% reflectance", SPEC)
DIM = parse_threat("linf 40% reflectance", SPEC)


CASES = (CLEAN_CASE, Case("step", shift, STEP), Case("dim", dim, DIM))


def run(log: RecordLog, batches: list[Batch], model: Net | None = None, **more: object) -> list[Record]:
    return evaluate_model(
        model or Net(), batches, log=log, recipe="r", name="unet", groups=GROUPS, attacks=CASES, **more
    )  # type: ignore[arg-type]


def measured(rows: list[Record]) -> dict[tuple[str, ...], tuple[float | None, int, tuple[str, ...]]]:
    """Everything but cost: time and passes depend on how chips were batched."""
    return {r.key: (r.value, r.n, r.flags) for r in rows if r.metric != "passes"}


def test_rows_of_a_clean_chip_by_hand(tmp_path: Path) -> None:
    batch, model = chips(), Net()
    rows = run(RecordLog(tmp_path / "r.jsonl"), [batch], model)
    with torch.no_grad():
        pred = model.eval()(batch.image).argmax(1)[0].numpy()
    label, valid = batch.label[0].numpy(), batch.valid[0].numpy()
    got = {(r.metric, r.klass): r for r in rows if r.chip == "c0" and r.method == "clean"}
    assert got["tp", "water"].value == ((pred == 1) & (label == 1) & valid).sum()
    assert got["fp", "land"].value == ((pred == 0) & (label == 1) & valid).sum()
    assert got["pixels", ""].value == valid.sum() == got["tp", "water"].n
    assert got["tp", "water"].group == "river" and got["pixels", ""].seconds > 0
    lost, true = got["area.lost_km2", "water"], got["area.true_km2", "water"]
    assert lost.value == pytest.approx(got["fn", "water"].value * 1e-4) and true.value == pytest.approx(
        ((label == 1) & valid).sum() * 1e-4
    )
    for part in ("tp", "fp", "fn"):
        sizes = sum(r.value for (m, _), r in got.items() if m.startswith(f"size.{part}."))
        assert sizes == got[part, "water"].value
    assert sum(r.value for (m, _), r in got.items() if m.startswith("calib.count.")) == valid.sum()
    assert got["srip.accuracy", ""].value is not None and "passes" not in {m for m, _ in got}


def test_attacked_rows_say_how_far_and_how_dear(tmp_path: Path) -> None:
    rows = run(RecordLog(tmp_path / "r.jsonl"), [chips()])
    got = {(r.metric, r.klass): r for r in rows if r.chip == "c0" and r.method == "step"}
    assert got["distance.linf", ""].value == pytest.approx(0.05, abs=1e-6)
    assert got["passes", ""].value == 1 and got["tp", "water"].threat == "linf 5% reflectance"
    assert {r.threat for r in rows if r.method == "dim"} == {str(DIM)}
    whole = {(r.metric, r.klass): r.value for r in aggregate_records(rows) if r.method == "step" and not r.group}
    assert whole["distance.linf", ""] == pytest.approx(0.05, abs=1e-6)


def test_order_and_size_of_batches_mean_nothing(tmp_path: Path) -> None:
    batch = chips()
    whole = run(RecordLog(tmp_path / "a.jsonl"), [batch])
    parts = run(RecordLog(tmp_path / "b.jsonl"), [batch.select([5, 1]), batch.select([0, 4, 3]), batch.select([2])])
    mine, theirs = measured(whole), measured(parts)
    assert mine.keys() == theirs.keys()
    for key, (value, n, flags) in mine.items():
        assert theirs[key][1:] == (n, flags), key
        # sums of confidences follow the last bit of the network; what is counted is equal
        exact = value is None or key[6].startswith(("tp", "fp", "fn", "pixels", "size", "area"))
        near = value if exact else pytest.approx(value, rel=1e-6)
        assert theirs[key][0] == near, key
    fig, other = measured(aggregate_records(whole)), measured(aggregate_records(parts))
    assert fig.keys() == other.keys()
    assert all(other[key][0] == (v if v is None else pytest.approx(v, rel=1e-6)) for key, (v, _, _) in fig.items())


def test_what_is_there_is_not_done_again(tmp_path: Path) -> None:
    path, batch, model = tmp_path / "r.jsonl", chips(), Net()
    run(RecordLog(path), [batch], model)
    calls = model.calls
    assert run(RecordLog(path), [batch], model) == [] and model.calls == calls


def test_killed_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    whole = run(RecordLog(tmp_path / "whole.jsonl"), [chips()])
    lines = (tmp_path / "whole.jsonl").read_bytes()
    path = tmp_path / "cut.jsonl"
    for share in (0.02, 0.35, 0.61, 0.98):
        path.write_bytes(lines[: int(len(lines) * share)])
        log = RecordLog(path)
        assert missing_chips(log, GROUPS, recipe="r", name="unet", classes=SPEC.classes, groups=GROUPS, attacks=CASES)
        model = Net()
        run(log, [chips()], model)
        assert 0 < model.calls <= 5
        assert measured(list(RecordLog(path))) == measured(whole)
        assert not missing_chips(
            RecordLog(path), GROUPS, recipe="r", name="unet", classes=SPEC.classes, groups=GROUPS, attacks=CASES
        )


def test_further_case_and_measure_add_only_themselves(tmp_path: Path) -> None:
    log, batch = RecordLog(tmp_path / "r.jsonl"), chips()
    lean = Case(measures=("counts",))
    first = evaluate_model(Net(), [batch], log=log, recipe="r", name="unet", groups=GROUPS, attacks=(lean,))
    assert {r.metric for r in first} == {"tp", "fp", "fn", "pixels"}
    run(log, [batch])
    assert measured(list(log)) == measured(run(RecordLog(tmp_path / "other.jsonl"), [batch]))


def test_model_is_left_as_it_was_found(tmp_path: Path) -> None:
    model = Net().train()
    model.conv.eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}

    def broken(model: SegmentationModel, batch: Batch, threat: ThreatModel, keys: Keys) -> Tensor:
        raise ValueError("attack failed")

    for attacks, error in ((CASES, None), ((Case("broken", broken, STEP),), ValueError)):
        with pytest.raises(error) if error else _nothing():
            evaluate_model(model, [chips()], log=RecordLog(tmp_path / "r.jsonl"), recipe="r", name="m", attacks=attacks)
        assert model.training and model.norm.training and not model.conv.training
        assert not model._forward_pre_hooks
        assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


class _nothing:  # noqa: N801
    def __enter__(self) -> None: ...
    def __exit__(self, *error: object) -> None: ...


def test_nothing_valid_is_undefined_and_never_nan(tmp_path: Path) -> None:
    rows = run(RecordLog(tmp_path / "r.jsonl"), [chips().select([4])])
    assert all(r.value is None or np.isfinite(r.value) for r in rows)
    ratios = [
        r
        for r in aggregate_records(rows)
        if r.metric.startswith(("iou", "miou", "accuracy", "srip", "ece", "nll", "f1")) and "group" not in r.metric
    ]
    assert ratios and {r.value for r in ratios} == {None}
    assert all(r.value is None or np.isfinite(r.value) for r in [*aggregate_records(rows), *worst_case(rows)])


def test_numbers_that_are_none_are_flagged(tmp_path: Path) -> None:
    model = Net()
    with torch.no_grad():
        model.conv.bias[0] = torch.nan
    rows = run(RecordLog(tmp_path / "r.jsonl"), [chips().select([0])], model)
    clean = [r for r in rows if r.method == "clean"]
    assert all(NON_FINITE in r.flags for r in clean)
    assert all(NON_FINITE in r.flags for r in aggregate_records(clean)) and all(
        r.value is None or np.isfinite(r.value) for r in rows
    )


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (lambda x: x[:, :1], ModelError, "expected finite images"),
        (lambda x: x * torch.nan, ModelError, "NaN or infinity"),
    ],
)
def test_broken_methods_are_refused(tmp_path: Path, change: object, error: type[Exception], text: str) -> None:
    case = Case("odd", lambda model, batch, threat, keys: change(batch.image), STEP)  # type: ignore[operator]
    with pytest.raises(error, match=text):
        evaluate_model(Net(), [chips()], log=RecordLog(tmp_path / "r.jsonl"), recipe="r", name="m", attacks=(case,))


def test_wrong_logits_and_labels_are_refused(tmp_path: Path) -> None:
    log = RecordLog(tmp_path / "r.jsonl")

    class Small(Net):
        def forward(self, image: Tensor) -> Tensor:
            return super().forward(image)[..., ::2]

    with pytest.raises(ModelError, match=r"logits of shape \(6, 2, 24, 24\), got \(6, 2, 24, 12\)"):
        run(log, [chips()], Small())
    batch = chips()
    with pytest.raises(DataError, match=r"c2.*expected label in 0\.\.1"):
        run(log, [replace(batch, label=batch.label.masked_fill(batch.valid, 5))])


def test_cases_are_checked() -> None:
    with pytest.raises(UsageError, match="did you mean 'counts'"):
        Case(measures=("count",))
    with pytest.raises(UsageError, match="both or none"):
        Case("pgd", shift)
    with pytest.raises(UsageError, match="label_free"):
        Case("clean", label_free=True)


def test_label_free_attack_never_sees_the_label(tmp_path: Path) -> None:
    batch = chips()
    other = replace(batch, label=(1 - batch.label).masked_fill(~batch.valid, 0))
    got = []

    def spy(model: SegmentationModel, batch: Batch, threat: ThreatModel, keys: Keys) -> Tensor:
        got.append(batch)
        return batch.image

    for i, seen in enumerate((batch, other)):
        case = Case("spy", spy, STEP, label_free=True)
        evaluate_model(Net(), [seen], log=RecordLog(tmp_path / f"{i}.jsonl"), recipe="r", name="m", attacks=(case,))
    assert torch.equal(got[0].label, got[1].label) and torch.equal(got[0].valid, batch.seen)


def test_many_classes_have_no_srip_rows_and_sizes_of_all_but_the_first(tmp_path: Path) -> None:
    model = Net()
    model.spec = replace(SPEC, classes=("soil", "trees", "urban"))
    model.conv = nn.Conv2d(3, 3, 1)
    log = RecordLog(tmp_path / "r.jsonl")
    rows = evaluate_model(model, [chips()], log=log, recipe="r", name="m")
    assert not any(r.metric.startswith("srip") for r in rows)
    assert {r.klass for r in rows if r.metric == "area.true_km2"} == {"trees", "urban"}
    assert evaluate_model(model, [chips()], log=log, recipe="r", name="m") == []


def test_pixel_area_of_each_chip(tmp_path: Path) -> None:
    rows = run(RecordLog(tmp_path / "r.jsonl"), [chips()], pixel_area_m2={"c0": 900.0})
    area = {r.chip: r.value for r in rows if r.metric == "area.true_km2" and r.method == "clean"}
    water = {
        r.chip: r.value
        for r in rows
        if r.metric in ("tp", "fn") and r.klass == "water" and r.method == "clean" and r.chip == "c0"
    }
    true = sum(
        r.value
        for r in rows
        if r.metric in ("tp", "fn") and r.klass == "water" and r.method == "clean" and r.chip == "c0"
    )
    assert water and area["c0"] == pytest.approx(true * 900e-6)


def test_examples_show_the_images_that_were_measured(tmp_path: Path) -> None:
    batch = chips()
    rows = run(RecordLog(tmp_path / "r.jsonl"), [batch], show=("c1",), examples=tmp_path / "examples")
    files = sorted((tmp_path / "examples").glob("*.npz"))
    assert [f.stem for f in files] == [
        f"c1@unet@{name}@{str(threat).replace(chr(32), chr(95))}" for name, threat in (("dim", DIM), ("step", STEP))
    ]
    facts = json.loads(files[1].with_suffix(".json").read_text())
    assert (facts["chip"], facts["method"], facts["threat"], facts["model"]) == (
        "c1",
        "step",
        "linf 5% reflectance",
        "unet",
    )
    assert facts["largest_change"] == pytest.approx(0.05, abs=1e-6) and facts["preview_bands"] == ["B04", "B03", "B02"]
    with np.load(files[1]) as held:
        assert held["clean"].shape == held["attacked"].shape == held["noise"].shape == (24, 24, 3)
        assert held["clean"].dtype == np.uint8 and (held["noise"][:5] == 128).all() and not held["clean"][:5].any()
        right = (held["pred_attacked"] == held["label"])[held["valid"]].sum()
    got = {r.metric + r.klass: r.value for r in rows if r.chip == "c1" and r.method == "step"}
    assert right == got["tpland"] + got["tpwater"]
    write_examples(Net(), [batch], CASES[1], tmp_path / "again", name="unet", chips=["c1"])
    with np.load(tmp_path / "again" / files[1].name) as again, np.load(files[1]) as held:
        assert all(np.array_equal(again[name], held[name]) for name in held.files)


def test_example_of_two_radar_bands_and_of_a_hostile_name(tmp_path: Path) -> None:
    image, mask = np.random.default_rng(0).normal(-15, 3, (2, 5, 4)).astype(np.float32), np.ones((5, 4), bool)
    common = {
        "method": "m",
        "threat": "t",
        "model": "u",
        "label": mask.astype(int),
        "pred_clean": mask.astype(int),
        "pred_attacked": mask.astype(int),
        "seen": mask,
        "valid": mask,
    }
    path = write_example(tmp_path, chip="../../etc/x", clean=image, attacked=image, bands=("VV", "VH"), **common)
    assert path == tmp_path / "etc_x.npz" and path.is_file()
    with np.load(path) as held:
        assert (held["noise"] == 128).all()
    with pytest.raises(DataError, match="one grid and 3 bands"):
        write_example(tmp_path, chip="c", clean=image, attacked=image, bands=("a", "b", "c"), **common)


def test_progress_is_told_once_per_batch_and_case(tmp_path: Path) -> None:
    said: list[tuple[int, int, str]] = []
    run(
        RecordLog(tmp_path / "r.jsonl"),
        [chips().select([0, 1]), chips().select([2])],
        progress=lambda *x: said.append(x),
    )
    assert [(d, t) for d, t, _ in said] == [(i + 1, 6) for i in range(6)] and said[1][2] == "step linf 5% reflectance"


def test_batches_may_be_a_stream(tmp_path: Path) -> None:
    def stream() -> Iterator[Batch]:
        yield chips().select([0])

    assert evaluate_model(Net(), stream(), log=RecordLog(tmp_path / "r.jsonl"), recipe="r", name="m")


def test_without_bodies_a_chip_is_done_when_it_is_measured(tmp_path: Path) -> None:
    net, log = Net(), RecordLog(tmp_path / "r.jsonl")
    evaluate_model(net, [chips().select([0, 1, 2])], log=log, recipe="r", name="n", bodies=())
    asked = {"recipe": "r", "name": "n", "classes": SPEC.classes}
    assert missing_chips(log, ["c0", "c1", "c2", "c3"], **asked, bodies=()) == ["c3"]
    calls = net.calls
    assert (
        evaluate_model(net, [chips().select([0, 1, 2])], log=log, recipe="r", name="n", bodies=()) == []
        and net.calls == calls
    )
    assert missing_chips(log, ["c0"], **asked, bodies=("water",)) == ["c0"], "sizes were not measured"


def test_every_class_of_bodies_is_measured(tmp_path: Path) -> None:
    log = RecordLog(tmp_path / "r.jsonl")
    evaluate_model(Net(), [chips().select([0, 1])], log=log, recipe="r", name="n", bodies=("water",))
    asked = {"recipe": "r", "name": "n", "classes": SPEC.classes}
    assert missing_chips(log, ["c0", "c1"], **asked, bodies=("water",)) == []
    assert missing_chips(log, ["c0", "c1"], **asked, bodies=("water", "land")) == ["c0", "c1"]


def test_rows_hold_the_threat_as_values(tmp_path: Path) -> None:
    threat = parse_threat("linf 1%,2%,1% reflectance bands=B04,B02 region=patch:0,0,8,8 sign=up", SPEC)
    rows = evaluate_model(
        Net(), [chips()], log=RecordLog(tmp_path / "r.jsonl"), recipe="r", name="m", attacks=[CLEAN_CASE, Case("fgsm", FGSM(), threat)]
    )  # fmt: skip
    said = {(r.method, r.norm, r.eps, r.unit, r.bands, r.region, r.limits) for r in rows}
    eps = (0.01, 0.02, 0.01)
    assert said == {
        ("clean", "", (), "", (), "", ""),
        ("fgsm", "linf", eps, "reflectance", ("B04", "B02"), "patch:0,0,8,8", "sign=up"),
    }
    assert {r.eps for r in aggregate_records(rows) if r.method == "fgsm"} == {eps}


def test_budgets_on_stretched_pictures_carry_a_flag(tmp_path: Path) -> None:
    for unit, text, flags in (
        ("stretched", "linf 0.01 stretched", ("not-physical",)),
        ("reflectance", "linf 1% reflectance", ()),
    ):
        net = Net()
        net.spec = replace(SPEC, unit=unit)
        case = Case("fgsm", FGSM(), parse_threat(text, net.spec))
        rows = evaluate_model(
            net, [chips()], log=RecordLog(tmp_path / unit), recipe="r", name="m", attacks=[CLEAN_CASE, case]
        )  # type: ignore[arg-type]
        assert {row.flags for row in rows if row.method == "fgsm"} == {flags}
        assert {row.flags for row in rows if row.method == "clean"} == {()}

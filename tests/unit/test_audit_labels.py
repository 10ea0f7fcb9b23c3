"""`seawall audit-labels` and what it is made of: a ranked list, a contact sheet, dynamics of learning."""

import csv
import json

import numpy as np
import pytest
import rasterio
import torch
from torch import nn

from seawall import api
from seawall.data.chips import ChipFolder
from seawall.data.index import ChipHeader
from seawall.data.writer import ChipWriter
from seawall.errors import DataError, UsageError
from seawall.label_audit import cross_validation
from seawall.label_audit.confident_learning import combined_evidence, tail_evidence
from seawall.label_audit.contact_sheet import NO_DATA_COLOR, SUSPECT_COLOR, ContactCard, montage
from seawall.label_audit.training_dynamics import TrainingDynamics, label_margin
from seawall.models.adapter import adapt
from seawall.models.water_index import WaterIndexThreshold
from seawall.models.weights import save_model
from seawall.report.images import CLASS_COLORS
from seawall.testing.assertions import same_snapshot, snapshot
from seawall.testing.fixtures import ground_batch, uneven_model
from seawall.types import ModelSpec

HEADER = ChipHeader(("B03", "B08"), "reflectance", ("land", "water"), 10.0)


def make_folder(root, chips=6, size=32, wrong=(2,), moved=()):
    """Lakes that NDWI finds; some labels have half of the lake turned into land, some lie three pixels up and two right."""
    writer = ChipWriter(root, HEADER)
    rng = np.random.default_rng(0)
    for i in range(chips):
        rows, cols = np.mgrid[:size, :size]
        lake = (rows - 15) ** 2 + (cols - 14 - i % 3) ** 2 < 80
        image = np.stack([np.where(lake, 0.08, 0.1), np.where(lake, 0.02, 0.3)]) + rng.normal(0, 0.005, (2, size, size))
        label = lake.astype(np.uint8)
        if i in wrong:
            label[:15] = 0
        if i in moved:
            label = np.roll(label, (-3, 2), (0, 1))
        if i == 0:
            label[:, :3] = 255
        writer.write(f"c{i}", f"g{i}", image.astype(np.float32), label)
    return writer.finish()


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    home = tmp_path_factory.mktemp("audit")
    chips = make_folder(home / "chips")
    return chips, home, api.audit_labels(chips.root, out=home / "out", folds=2, epochs=4, rule="ndwi > 0", worst=3)


def test_the_wrong_chip_comes_first_with_its_wrong_pixels(audited):
    chips, home, done = audited
    rows = list(csv.DictReader((home / "out" / "suspects.csv").open()))
    assert [row["rank"] for row in rows] == [str(i) for i in range(1, 7)]
    assert rows[0]["chip"] == "c2" == done.table[0]["chip"]
    assert [json.loads(line)["chip"] for line in (home / "out" / "suspects.jsonl").read_text().splitlines()] == [
        r["chip"] for r in rows
    ]
    with rasterio.open(home / "out" / "suspects" / "c2.tif") as file:
        found = file.read(1)
    chip = chips.read("c2")
    lake = chip.image[1] < 0.15
    assert found.shape == chip.label.shape
    really = lake & (chip.label == 0)
    assert (found == 1)[really].mean() > 0.6
    assert really[found == 1].mean() > 0.8
    with rasterio.open(home / "out" / "suspects" / "c0.tif") as file:
        assert (file.read(1)[:, :3] == 255).all() and file.nodata == 255
    assert float(rows[0]["rule_agreement"]) < 0.95
    assert int(rows[0]["witness_px"]) > 0
    assert done.facts["water labelled land"] > done.facts["land labelled water"]


def test_the_sheet_is_one_page_that_needs_nothing_else(audited):
    _, home, _ = audited
    page = (home / "out" / "sheet.html").read_text()
    assert page.count("<section>") == 3
    assert "http" not in page.replace("http-equiv", "")
    assert page.count("data:image/png;base64,") == 12
    assert (home / "out" / "sheet.png").read_bytes()[:4] == b"\x89PNG"


def test_it_resumes_without_training_again(audited):
    chips, home, _ = audited
    before = {p: p.stat().st_mtime_ns for p in (home / "out").rglob("*.npy")}
    list_ = (home / "out" / "suspects.csv").read_bytes()
    (home / "out" / "suspects.csv").unlink()
    api.audit_labels(chips.root, out=home / "out", folds=2, epochs=4, rule="ndwi > 0", worst=3)
    assert {p: p.stat().st_mtime_ns for p in (home / "out").rglob("*.npy")} == before
    assert (home / "out" / "suspects.csv").read_bytes() == list_


def test_given_weights_judge_without_training(tmp_path):
    chips = make_folder(tmp_path / "chips", wrong=(4,))
    model = WaterIndexThreshold("ndwi")(ModelSpec(HEADER.bands, HEADER.classes, "reflectance", 10.0))
    save_model(tmp_path / "ndwi.safetensors", model)
    done = api.audit_labels(chips.root, weights=tmp_path / "ndwi.safetensors", out=tmp_path / "out", worst=2)
    assert done.table[0]["chip"] == "c4"
    assert done.table[0]["aum"] is None
    assert not (tmp_path / "out" / "folds").exists()


@pytest.mark.parametrize("kind", ["empty masks", "one class", "nothing valid"])
def test_poor_chips_have_a_defined_result(tmp_path, kind):
    writer = ChipWriter(tmp_path / "chips", HEADER)
    value = {"empty masks": 0, "one class": 1, "nothing valid": 255}[kind]
    for i in range(2):
        image = np.random.default_rng(i).uniform(0.05, 0.3, (2, 32, 32)).astype(np.float32)
        writer.write(f"c{i}", f"g{i}", image, np.full((32, 32), value, np.uint8))
    chips = writer.finish()
    done = api.audit_labels(chips.root, out=tmp_path / "out", folds=2, epochs=1)
    assert len(done.table) == 2
    assert all(row["issues_px"] == 0 for row in done.table)
    if kind == "nothing valid":
        assert all(row["quality"] is None for row in done.table)


def test_orders_that_cannot_be(tmp_path):
    chips = make_folder(tmp_path / "chips", chips=2)
    with pytest.raises(UsageError, match="worst"):
        api.audit_labels(chips.root, out=tmp_path / "out", worst=0)
    with pytest.raises(DataError, match="folds"):
        api.audit_labels(chips.root, out=tmp_path / "out", folds=3)
    with pytest.raises(UsageError, match="rule"):
        api.audit_labels(chips.root, out=tmp_path / "out", rule="ndwi about 0")
    with pytest.raises(DataError, match="expected chips"):
        api.audit_labels(ChipWriter(tmp_path / "e", HEADER).finish().root, out=tmp_path / "out")


def test_dynamics_by_hand_and_an_epoch_counts_once(tmp_path):
    batch, model = ground_batch(), uneven_model()
    before = snapshot(model)
    dynamics = TrainingDynamics(lambda: [batch], tmp_path / "d.jsonl")
    first = dynamics.check(model)
    assert dynamics.check(model) == first  # the same weights again, as after a resume
    assert first["watched"] == 1.0
    assert same_snapshot(before, snapshot(model))
    with torch.no_grad():
        model.linear.weight.mul_(2)
    assert dynamics.check(model)["watched"] == 2.0
    learned = dynamics.learned()
    assert set(learned) == set(batch.chips)
    assert all(one.epochs == 2 for one in learned.values())
    rows = [row for row in dynamics.rows() if row["chip"] == "ground0"]
    assert learned["ground0"].aum == pytest.approx((rows[0]["margin"] + rows[1]["margin"]) / 2)
    logits = torch.tensor([1.0, 4.0, 2.0]).view(1, 3, 1, 1)
    assert [float(label_margin(logits, torch.full((1, 1, 1), k))) for k in range(3)] == [-3.0, 2.0, -2.0]


def test_a_chip_that_nobody_saw_has_a_picture():
    image = np.zeros((2, 8, 12), np.float32)
    none = np.zeros((8, 12), bool)
    row = {"rank": 1, "chip": "späte <chip>", "issue_share": None}
    card = ContactCard(
        row, image, np.zeros((8, 12), np.int64), np.zeros((8, 12), np.int64), none, none, none, ("VV", "VH")
    )
    assert montage([card], ("land", "water")).ndim == 3


def test_the_picture_has_titles_a_legend_and_the_group():
    image, plane = np.zeros((2, 8, 8), np.float32), np.ones((8, 8), bool)
    row = {
        "rank": 1,
        "chip": "a",
        "group": "delta",
        "issue_share": 0.5,
        "shift_gain": 0.25,
        "shift_rows": -3,
        "shift_cols": 4,
    }
    card = ContactCard(row, image, plane.astype(np.int64), plane.astype(np.int64), plane, plane, ~plane, ("VV", "VH"))
    assert card.caption() == "1. a   group delta   50.0 % suspect   fits better by 0.25 moved 3 px up and 4 px right"
    made = montage([card], ("land", "water"))
    head = made[:44]
    assert all((head[:18, 6 + column * 198 : 200 + column * 198] < 200).any() for column in range(4))
    for color in (*(CLASS_COLORS[k][:3] for k in range(2)), NO_DATA_COLOR, SUSPECT_COLOR):
        assert (head[18:] == color).all(-1).sum() >= 100
    assert np.array_equal(montage([], ("land", "water"))[:44], head)


def test_a_folder_of_corrupted_chips_can_be_audited_again(audited, tmp_path):
    chips, _, _ = audited
    api.corrupt(chips.root, noise=("drop-objects 50% of=objects",), out=tmp_path / "dropped")
    assert len(ChipFolder.open(tmp_path / "dropped")) == 6


def test_each_chip_is_judged_by_the_model_that_did_not_learn_from_its_group(tmp_path, monkeypatch):
    chips, trained = make_folder(tmp_path / "chips"), []

    def train_fold(folder, ids, home, settings, step, planes):
        """A model that gives water the same probability everywhere, another one in every fold."""
        trained.append(set(ids))
        net = adapt(nn.Conv2d(2, 2, 1), ModelSpec(HEADER.bands, HEADER.classes, HEADER.unit, HEADER.gsd_m))
        with torch.no_grad():
            for value in net.parameters():
                value.zero_()
            next(v for v in net.parameters() if v.ndim == 1)[1] = float(len(trained))
        return net.eval(), TrainingDynamics(list, home / "dynamics.jsonl")

    monkeypatch.setattr(cross_validation, "_train_fold", train_fold)
    settings = cross_validation.FoldTraining("unet", 3, 1, 0, "cpu")
    predictions, _ = cross_validation.cross_validate(chips, tmp_path / "out", settings, lambda *_: None)
    assert len(trained) == 3 and set(predictions) == set(chips.ids)
    for id_, path in predictions.items():
        fold = [number for number, ids in enumerate(trained, 1) if id_ not in ids]
        assert len(fold) == 1
        assert np.load(path)[1] == pytest.approx(1 / (1 + np.exp(-fold[0])), abs=1e-3)


def test_the_rank_joins_three_witnesses_and_each_has_its_column(audited):
    _, home, _ = audited
    rows = [json.loads(line) for line in (home / "out" / "suspects.jsonl").read_text().splitlines()]
    columns = {"evidence_issues": "witness_share", "evidence_shift": "shift_gain", "evidence_learning": "train_loss"}
    for name, column in columns.items():
        values = np.array([row[column] for row in rows])
        excess = values - np.median(values)
        scale = np.log10(2) / np.median(excess[excess > 0]) if (excess > 0).any() else 0
        counted = [np.log10(len(values) / np.sum(values >= value)) for value in values]
        assert [row[name] for row in rows] == pytest.approx(np.maximum(counted, excess * scale).tolist())
    for row in rows:
        assert row["evidence"] == pytest.approx(sum(row[name] for name in columns))
    assert [row["evidence"] for row in rows] == sorted((row["evidence"] for row in rows), reverse=True)


def test_a_moved_label_comes_first_and_says_how_it_must_move_back(tmp_path):
    chips = make_folder(tmp_path / "chips", wrong=(), moved=(4,))
    model = WaterIndexThreshold("ndwi")(ModelSpec(HEADER.bands, HEADER.classes, "reflectance", 10.0))
    save_model(tmp_path / "ndwi.safetensors", model)
    first, second = api.audit_labels(
        chips.root, weights=tmp_path / "ndwi.safetensors", out=tmp_path / "out", worst=2
    ).table
    assert first["chip"] == "c4"
    assert (first["shift_rows"], first["shift_cols"]) == (3, -2)
    assert first["shift_gain"] > 0.3 > second["shift_gain"]
    assert first["evidence_learning"] is None  # nobody was trained
    assert first["evidence"] == pytest.approx(first["evidence_issues"] + first["evidence_shift"])
    assert first["evidence_shift"] == pytest.approx(np.log10(6)) and second["evidence_shift"] < 0.5


def test_evidence_by_hand():
    """The median is 2; above it lie 3, 4 and 9, whose median excess is 2: 9 is 3.5 times as far, the others are counted."""
    made = tail_evidence([1.0, 2.0, None, 3.0, 0.0, 4.0, 9.0, 1.0])
    assert made[2] is None
    shares = [6 / 7, 4 / 7, 3 / 7, 1.0, 2 / 7, 2**-3.5, 6 / 7]
    assert [10**-e for e in made if e is not None] == pytest.approx(shares)
    assert tail_evidence([]) == [] and tail_evidence([None]) == [None]
    assert tail_evidence([1.0, 1.0]) == [0.0, 0.0]  # where all are alike nobody is suspicious
    assert tail_evidence([0.0] * 9 + [5.0])[-1] == pytest.approx(1.0)  # a lone one is one in ten
    assert combined_evidence([0.1, 0.01, None]) == pytest.approx(0.11)
    assert combined_evidence([0.0]) == 0.0 and combined_evidence([None, None]) is None
    with pytest.raises(UsageError, match="finite"):
        tail_evidence([float("nan")])


def test_a_rule_about_water_needs_chips_with_water(tmp_path):
    header = ChipHeader(("B03", "B08"), "reflectance", ("forest", "field"), 10.0)
    writer = ChipWriter(tmp_path / "chips", header)
    for i in range(2):
        writer.write(f"c{i}", f"g{i}", np.full((2, 32, 32), 0.1, np.float32), np.zeros((32, 32), np.uint8))
    writer.finish()
    with pytest.raises(UsageError, match="expected chips with the class water, got forest, field"):
        api.audit_labels(tmp_path / "chips", out=tmp_path / "out", rule="ndwi > 0")


def ndwi_model():
    return WaterIndexThreshold("ndwi")(ModelSpec(HEADER.bands, HEADER.classes, "reflectance", 10.0))


def audit_and_relabel(chips, home, weights=None, **settings):
    settings = {
        "folds": 2, "model": "unet", "epochs": 1, "rule": "", "worst": 1, "seed": 0, "device": "cpu",
        "progress": lambda *_: None, "relabel": home / "relabelled", **settings,
    }  # fmt: skip
    return api.audit_labels(chips.root, out=home / "out", weights=weights, **settings).facts


def test_relabel_writes_a_folder_with_the_wrong_labels_changed_and_the_images_as_they_were(tmp_path):
    chips = make_folder(tmp_path / "chips")
    before = {path: path.read_bytes() for path in chips.root.rglob("*.*")}
    save_model(tmp_path / "ndwi.safetensors", ndwi_model())
    facts = audit_and_relabel(chips, tmp_path, tmp_path / "ndwi.safetensors")
    assert facts["relabel_rounds"] == 1 and facts["relabelled"] == str(tmp_path / "relabelled")
    made = ChipFolder.open(tmp_path / "relabelled")
    assert made.ids == chips.ids and all(path.read_bytes() == content for path, content in before.items())
    for id_ in chips.ids:
        old, new = chips.read(id_), made.read(id_)
        changed = old.label != new.label
        assert np.array_equal(old.image, new.image) and np.array_equal(old.valid, new.valid)
        assert changed.any() == (id_ == "c2") == any("relabelled" in note for note in made.row(id_).notes)
        if changed.any():
            lake = old.image[1] < 0.15
            assert np.array_equal(new.label[changed], lake[changed])
            assert changed.sum() > 0.6 * np.count_nonzero(lake & (old.label == 0))
            assert facts["relabelled_px"] == changed.sum()
        assert made.row(id_).split_counts == chips.row(id_).class_counts  # a split by training stays the same


def test_relabelling_trains_the_folds_of_the_next_round_on_the_changed_labels(tmp_path, monkeypatch):
    chips, trained = make_folder(tmp_path / "chips"), []

    def train_fold(folder, ids, home, settings, step, planes):
        trained.append(None if planes is None else {id_: planes[id_] for id_ in ids})
        return ndwi_model().eval(), TrainingDynamics(list, home / "dynamics.jsonl")

    monkeypatch.setattr(cross_validation, "_train_fold", train_fold)
    facts = audit_and_relabel(chips, tmp_path)
    assert facts["relabel_rounds"] == 2 and facts["relabel_stop"] == "settled"
    assert trained[:2] == [None, None] and len(trained) == 4
    planes = trained[2] | trained[3]
    made = ChipFolder.open(tmp_path / "relabelled")
    for id_ in chips.ids:
        chip = made.read(id_)
        assert np.array_equal(planes[id_], np.where(chip.valid, chip.label, 255))


def test_relabelling_never_writes_over_the_chips(tmp_path):
    chips = make_folder(tmp_path / "chips")
    with pytest.raises(UsageError, match="apart"):
        audit_and_relabel(chips, tmp_path, relabel=chips.root)

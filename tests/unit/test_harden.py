"""The verb harden: two networks of one split, their card and their bill, what is refused, and a planted overfitting."""

import itertools
import json
import shutil
import signal
import time
from _thread import interrupt_main
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from seawall import api
from seawall.data.chips import ChipFolder
from seawall.data.index import ChipHeader
from seawall.data.loader import whole_chips
from seawall.data.writer import ChipWriter
from seawall.errors import ModelError, RunError, StoppedError, UsageError
from seawall.evaluation.exact import ExactWorstCase
from seawall.models.unet import UNet
from seawall.models.water_index import WaterIndexThreshold
from seawall.models.weights import load_model, save_model, split_of
from seawall.pipeline import training as pipeline_training
from seawall.pipeline.harden import default_model
from seawall.pipeline.training import spec_of_chips
from seawall.pipeline.validation_metrics import OVERFITTING
from seawall.records import read_records
from seawall.report.hardening import overfitting_text
from seawall.report.run_facts import HardeningFacts
from seawall.result import Result
from seawall.rng import Keys
from seawall.testing import ground_batch, linear_model
from seawall.threat.model import ThreatModel
from seawall.training.configuration import Training
from seawall.training.loop import fit
from seawall.training.objectives.supervised import Supervised
from seawall.types import ModelSpec

TWO = "linf 2% reflectance"
QUICK = (
    "model.settings.width=4", "model.settings.depth=1", "training.settings.epochs=2", "training.settings.steps_per_epoch=3",
    "training.settings.patch=16", "training.settings.batch=2", "training.settings.check_every=1", "training.settings.tensorboard=false",
    "sanity_checks=false", "examples=0",
)  # fmt: skip


def chips_at(root: Path, places: str = "g") -> Path:
    """Six places of water and land that differ little enough for an attack of 2 %; they have no shortwave infrared."""
    writer = ChipWriter(root, ChipHeader(("B03", "B08"), "reflectance", ("land", "water"), 10.0))
    draw = np.random.default_rng(len(places))
    rows, cols = np.mgrid[:32, :32]
    for i in range(6):
        water = np.hypot(rows - draw.integers(8, 24), cols - draw.integers(8, 24)) < 9
        image = np.where(water, np.array([0.08, 0.05])[:, None, None], np.array([0.06, 0.1])[:, None, None])
        image = (image + draw.normal(0, 0.01, image.shape)).clip(0.001).astype(np.float32)
        seen = np.ones((32, 32), bool)
        writer.write(f"c{i}", f"{places}{i}", image, water.astype(np.uint8), seen=seen, source=f"made {i}")
    writer.finish()
    return root


def harden(chips: Path, out: Path, threat: str = TWO, **more: object) -> Result:
    changes = (*QUICK, *more.pop("changes", ()))  # type: ignore[misc]
    more = {"model": "unet", **more}
    return api.harden(chips, threat, out=out, suite="seawall passes=3", changes=changes, device="cpu", **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def chips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chips_at(tmp_path_factory.mktemp("chips") / "mine")


@pytest.fixture(scope="module")
def done(chips: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A hardening that nobody disturbed: its run folder and what the verb returned."""
    found = harden(chips, tmp_path_factory.mktemp("runs"))
    return Path(str(found.facts["report"])).parent, found


def test_the_card_has_both_networks_the_fitting_index_and_the_bill(done: tuple[Path, Result]) -> None:
    folder, found = done
    budgets = ["clean", *(f"linf {p}% reflectance" for p in ("0.25", "0.5", "1", "2"))]
    names = ["U-Net, plain", "U-Net, hardened", "hardened, attacks on plain", "NDWI"]
    assert [(row["network"], row["threat"]) for row in found.table] == [(n, b) for n in names for b in budgets]
    assert all(float(row["low"]) <= float(row["iou"]) <= float(row["high"]) for row in found.table)  # type: ignore[arg-type]
    exact = [float(row["iou"] or 0) for row in found.table if row["network"] == "NDWI"]
    assert exact == sorted(exact, reverse=True) and exact[-1] < exact[0]
    said = {row["network"]: row["flags"] for row in found.table if row["threat"] == TWO}
    assert "no-sanity-checks" in str(said["U-Net, hardened"]) and "no-sanity-checks" not in str(said["NDWI"])
    bill = [found.facts[f"CPU-minutes of {what}"] for what in ("plain", "unet", "the evaluation")]
    assert all(isinstance(minutes, float) and minutes > 0 for minutes in bill)
    card = json.loads((folder / "card.json").read_text())
    assert card == {"facts": dict(found.facts), "table": [dict(row) for row in found.table]}
    assert set(HardeningFacts.model_fields) <= json.loads((folder / "facts.json").read_text())["hardening"].keys()
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert 'id="hardening"' in page and "Catastrophic overfitting: none" in page


def test_both_networks_share_split_and_steps_and_only_one_sees_attacks(done: tuple[Path, Result]) -> None:
    folder, _ = done
    networks = {name: folder / "models" / name for name in ("unet", "plain")}
    assert len({split_of(path / "model.safetensors").digest for path in networks.values()}) == 1  # type: ignore[union-attr]
    rows = {
        n: [json.loads(line) for line in (p / "history.jsonl").read_text().splitlines()] for n, p in networks.items()
    }
    assert [row["step"] for row in rows["unet"]] == [row["step"] for row in rows["plain"]] == [3, 6]
    assert OVERFITTING in rows["unet"][0] and OVERFITTING not in rows["plain"][0]
    methods = {(r.model, r.method) for r in read_records(folder / "records.jsonl")}
    assert {("unet", "transfer"), ("ndwi", "exact"), ("plain", "seawall pooled 3")} <= methods
    assert not methods & {("plain", "transfer"), ("ndwi", "seawall pooled 3"), ("unet", "exact")}


def test_the_same_command_gives_the_same_card_and_bill(chips: Path, done: tuple[Path, Result]) -> None:
    folder, found = done
    before = (folder / "models/unet/model.safetensors").stat().st_mtime_ns
    again = harden(chips, folder.parent)
    assert (again.facts, list(again.table)) == (found.facts, list(found.table))
    assert (folder / "models/unet/model.safetensors").stat().st_mtime_ns == before


def test_the_default_model_has_indices_where_the_chips_have_reflectance() -> None:
    optical = ModelSpec(("B03", "B08"), ("land", "water"), "reflectance", 10.0)
    assert default_model(optical) == "index-unet"
    assert default_model(replace(optical, bands=("B03",))) == "unet"
    assert default_model(replace(optical, bands=("VV", "VH"), unit="sigma0_db")) == "unet"


def test_a_plain_network_of_the_same_split_is_taken(chips: Path, done: tuple[Path, Result], tmp_path: Path) -> None:
    folder, found = done
    own = tmp_path / "own"
    shutil.copytree(folder / "models/plain", own)
    taken = harden(chips, tmp_path / "runs", against=own / "model.safetensors")
    assert list(taken.table) == list(found.table)
    assert taken.facts["CPU-minutes of plain"] == found.facts["CPU-minutes of plain"]
    assert not (Path(str(taken.facts["report"])).parent / "models/plain").exists()
    model = load_model(own / "model.safetensors")
    with torch.no_grad():
        next(model.parameters()).mul_(0.5)
    save_model(own / "model.safetensors", model)
    with pytest.raises(RunError, match=r"reference\.digest"):
        harden(chips, tmp_path / "runs", against=own / "model.safetensors")


def test_what_does_not_fit_is_refused_before_any_training(
    chips: Path, done: tuple[Path, Result], tmp_path: Path
) -> None:
    plain, out = done[0] / "models/plain/model.safetensors", tmp_path / "runs"
    for threat, says in (("linf 0.5 dB", "the model's unit"), ("linf 0% reflectance", "eps above 0"), ("", "got none")):
        with pytest.raises(UsageError, match=says):
            harden(chips, out, threat)
    with pytest.raises(UsageError, match="unknown method 'pgd-3'"):
        harden(chips, out, method="pgd-3")
    with pytest.raises(UsageError, match="no part"):
        harden(chips_at(tmp_path / "others", "elsewhere"), out, against=plain)
    with pytest.raises(UsageError, match=r"its (train|val) part"):
        harden(chips, out, against=plain, seed=1)
    bare = UNet(width=4, depth=1)(spec_of_chips(ChipFolder.open(chips)))
    save_model(tmp_path / "bare.safetensors", bare)
    with pytest.raises(UsageError, match="no part"):
        harden(chips, out, against=tmp_path / "bare.safetensors")
    assert not list(out.rglob("history.jsonl"))


@pytest.mark.parametrize("first", [0.0, 1.0])
def test_a_planted_overfitting_goes_back_to_the_best_check_and_says_so(
    chips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: float
) -> None:
    real, planted = pipeline_training.validation_metrics, iter([(0.8, first), (0.1, 1.0)])

    def planting(model, folder, ids, robustness=None):
        found = real(model, folder, ids, robustness)
        if robustness is not None:
            found["val.robust.iou.water"], found[OVERFITTING] = next(planted)
        return found

    monkeypatch.setattr(pipeline_training, "validation_metrics", planting)
    found = harden(chips, tmp_path, changes=("training.settings.epochs=4",))
    folder = Path(str(found.facts["report"])).parent
    rows = [json.loads(line) for line in (folder / "models/unet/history.jsonl").read_text().splitlines()]
    assert len(rows) == (1 if first else 2) and rows[0]["best"]
    said = str(found.facts["overfitting"])
    assert f"after epoch {1 if first else 2}" in said and "weights are those of epoch 1" in said
    assert ("do not rely on them" in said) == bool(first)
    assert said.replace("'", "’") in (folder / "report.html").read_text(encoding="utf-8")
    plain = (folder / "models/plain/history.jsonl").read_text().splitlines()
    assert len(plain) == 4, "the plain network has no such monitor"


def test_an_undisturbed_training_is_said_to_be_one() -> None:
    assert overfitting_text(HardeningFacts(kept_epoch=3)).startswith("none")


def test_the_exact_worst_case_is_that_of_every_corner(chips: Path) -> None:
    folder = ChipFolder.open(chips)
    model = WaterIndexThreshold("ndwi")(spec_of_chips(folder))
    [batch] = whole_chips(folder, folder.ids[:1])
    threat = ThreatModel("linf", 0.02, low=0.0)
    image = ExactWorstCase()(model, batch, threat, Keys(0, batch.chips))
    assert bool(((image - batch.image).abs() <= 0.02 + 1e-6).all()) and bool((image >= 0).all())
    wrong = torch.zeros_like(batch.valid)
    for steps in itertools.product(np.linspace(-0.02, 0.02, 9), repeat=2):
        moved = (batch.image + torch.tensor(steps, dtype=torch.float32)[None, :, None, None]).clamp_min(0)
        wrong |= model(moved).argmax(1) != batch.label
    assert torch.equal(model(image).argmax(1) != batch.label, wrong) and bool(wrong.any())
    with pytest.raises(ModelError, match="exact: expected a threshold model"):
        ExactWorstCase()(linear_model(), ground_batch(), threat, Keys(0, ground_batch().chips))


def test_the_cpu_time_of_a_stopped_epoch_is_kept(tmp_path: Path) -> None:
    batch = ground_batch(images=2, size=16)
    model = UNet(width=4, depth=1)
    settings = Training(epochs=2, steps_per_epoch=3, batch=2, patch=16, tensorboard=False)

    def made() -> torch.nn.Module:
        network = model(linear_model().spec)
        network.standardize.fit([0.1] * len(network.spec.bands), [0.1] * len(network.spec.bands))  # type: ignore[union-attr, operator]
        return network

    def feed(stop: bool, epoch: int):
        for index in range(3):
            if stop and (epoch, index) == (1, 1):
                end = time.process_time() + 0.5
                while time.process_time() < end:
                    pass
                interrupt_main(signal.SIGTERM)
            yield batch

    with pytest.raises(StoppedError):
        fit(made(), Supervised(), lambda epoch: feed(True, epoch), None, settings, tmp_path, device="cpu")
    history = fit(made(), Supervised(), lambda epoch: feed(False, epoch), None, settings, tmp_path, device="cpu")
    spent = [float(row["cpu_seconds"] or 0) for row in history.rows]
    assert spent[0] > 0 and spent[1] > 0.5

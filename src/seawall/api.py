"""Robust semantic segmentation of Sentinel imagery: train, attack, harden and map, in physical units."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from seawall.records import SEVERITIES
from seawall.result import Progress, Result, no_progress, stage_progress

if TYPE_CHECKING:
    from seawall.inputs import Sample
    from seawall.threat.model import ThreatModel
    from seawall.types import SegmentationModel

Option = TypeVar("Option", bound=str)
Other = TypeVar("Other")
CORRECTIONS: tuple[Literal["holm", "bonferroni"], ...] = ("holm", "bonferroni")
UNPAIRED: tuple[Literal["fail", "keep"], ...] = ("fail", "keep")


def run(
    recipe: Path | str,
    *,
    out: Path | str = Path("runs"),
    changes: Sequence[str] = (),
    device: str = "auto",
    devices: int | None = None,
    resume: bool = True,
    progress: Progress = no_progress,
) -> Result:
    """Run a whole experiment: chips, training, evaluation, attacks, corrupted labels, scene map, report.

    Args:
        recipe: A TOML file, such as recipes/demo.toml.
        out: Folder of run folders; this run gets one of its own, named by its content.
        changes: Change one value of the recipe, as key=value; may be given again.
        device: auto, cpu, cuda, or mps.
        devices: Processes that share each training, one per device; the recipe's training.devices if not given.
        resume: Continue where an earlier run stopped; --no-resume starts over.

    Returns:
        The summary table and the paths of the report and the maps.

    Raises:
        RecipeError: The recipe has an unknown key, a wrong type or an unknown method.

    Command:
        seawall run recipes/hls.toml --set training.settings.epochs=3
    """
    from seawall.recipe.recipe import read_recipe

    read = read_recipe(
        Path(recipe), (*changes, *_devices_change(devices))
    )  # before the slow imports, so that errors come fast

    from seawall.pipeline import run as pipeline

    done = pipeline.run_recipe(read, Path(out), device=device, resume=resume, progress=progress)
    maps = {f"{layer} map": path for layer, path in done.maps.items()}
    facts = {"report": str(done.page), **maps, **pipeline.label_facts(done.run), **pipeline.code_facts(done.code)}
    return Result(facts, pipeline.summarize_run(done.run), done.failed)


def curate(
    source: str,
    *,
    out: Path | str = Path("chips"),
    kind: str = "auto",
    select: str = "",
    sensor: str = "",
    unpaired: str = "fail",
    bands: Sequence[str] = (),
    names: Sequence[str] = (),
    labels: str = "",
    label_map: Sequence[str] = (),
    group: str = "",
    gsd_m: float | None = None,
    progress: Progress = no_progress,
) -> Result:
    """Make a chip folder from images and labels: checks them first, resumes after a kill, lists what failed.

    Args:
        source: A folder of image/label pairs, a CSV index, Sen1Floods11's layout, or a number of scenes to simulate.
        out: The chip folder to make or to continue.
        kind: Registered source, such as pairs or index, with settings of its own after its name; auto detects it.
        select: Keep ids of an index that start with this.
        sensor: s1 or s2: which images of a source that has both; s2 if not given. Several, as s1,s1.pre,s2, are put into one chip.
        unpaired: Chips that lack an image of one sensor: fail, or keep them without it.
        bands: Band to keep, such as B03, or of several sensors s2.B03; give it once per band. All by default.
        names: Band name in file order, for files that name none; give it once per band.
        labels: Label by a rule such as "ndwi >= -0.25" instead of label files.
        label_map: Class of a raw label value, such as -1=255 (255 does not count); may be given again.
        group: Regular expression on file names; its first bracket is the event or place.
        gsd_m: Meters per pixel where files have no georeference.

    Returns:
        How many chips were made, kept, skipped, and the reasons of those that failed.

    Command:
        seawall curate my/pairs --out chips/mine --group "(.*)_\\d+"
    """
    from seawall.data.curate import curate_chips as make
    from seawall.labels.rules import parse_rule
    from seawall.types import unit_text

    done = make(
        source, Path(out), kind=kind, select=select, sensor=sensor, unpaired=_one_of("unpaired", unpaired, UNPAIRED), bands=bands or None, names=names,
        labeler=parse_rule(labels) if labels else None, label_map=_label_map(label_map), group=group, gsd_m=gsd_m,
        progress=stage_progress(progress, "chips"),
    )  # fmt: skip
    chips = done.folder
    facts: dict[str, str | int | float | None] = {
        "folder": str(out), "made": len(done.made), "kept": len(done.kept), "skipped": len(done.skipped),
        "groups": len(chips.groups()), "bands": " ".join(chips.bands), "unit": unit_text(chips.unit), "gsd_m": chips.gsd_m,
        **{
            f"scale ({count} chips)": "; ".join(text for text, n in done.scales.items() if n == count)
            for count in dict.fromkeys(done.scales.values())
        },
        **{f"flag {flag}": count for flag, count in done.flags.items()},
    }  # fmt: skip
    table = [{"skipped": item, "reason": reason} for item, reason in done.skipped]
    return Result(facts, table, done.failed)


def train(
    chips: Path | str,
    *,
    out: Path | str = Path("runs/model"),
    model: str | None = None,
    changes: Sequence[str] = (),
    seed: int = 0,
    device: str = "auto",
    devices: int | None = None,
    resume: bool = True,
    progress: Progress = no_progress,
) -> Result:
    """Train a network on a chip folder, split by group; the weights go into <out>/models/<model>, with the split inside.

    1000 steps on patches of 64 pixels, cross-entropy and Dice, the average of the last weights: what does best on other places,
    see docs/measured.md. The validation part is reported and selects nothing, unless `changes` say so.

    Args:
        chips: A chip folder, as `seawall curate` makes it.
        out: Where weights, logs and checkpoints go.
        model: Registered model: unet, linknet, deeplabv3+ ...; by default a U-Net of width 8, for several bands in reflectance index-unet.
        changes: Change one value of the recipe, such as training.settings.epochs=5 or model.settings.width=32.
        seed: Seed of split, weights and patches; a folder corrupted by parts keeps the split that it was corrupted by.
        device: auto, cpu, cuda, or mps.
        devices: Processes that share the training, one per device; training.devices if not given.
        resume: Continue from the checkpoint in the folder.

    Returns:
        The figures of the validation part and the path of the weights.

    Command:
        seawall train chips/mine --out runs/mine --set training.settings.epochs=20
    """
    from seawall.pipeline import train as pipeline

    changes = (*changes, *_devices_change(devices))
    return Result(
        *pipeline.train_chips(
            Path(chips),
            out=Path(out),
            model=model,
            changes=changes,
            seed=seed,
            device=device,
            resume=resume,
            progress=progress,
        )
    )


def harden(
    chips: Path | str,
    threat: str = "",
    *,
    out: Path | str = Path("runs"),
    method: str = "n-fgsm-squared",
    model: str = "auto",
    against: Path | str | None = None,
    suite: str = "seawall passes=30",
    changes: Sequence[str] = (),
    seed: int = 0,
    device: str = "auto",
    resume: bool = True,
    progress: Progress = no_progress,
) -> Result:
    """Train a hardened network and a plain one on the same split, attack both, and print what hardening gave and cost.

    Args:
        chips: A chip folder, as `seawall curate` makes it.
        threat: What to harden against, in the chips' unit, such as "linf 2% reflectance".
        out: Folder of run folders; this run gets one of its own, with weights, rows, report.html and card.json.
        method: n-fgsm-squared, n-fgsm-drawn or pgd-3-squared; see docs/hardening.md.
        model: Registered model; auto is index-unet where the chips have reflectance bands, else unet.
        against: Weights of a plain network of the same split, to compare with instead of training one.
        suite: Attacks of the card, at an eighth, a quarter, half and all of eps; final figures need "seawall passes=300".
        changes: Change one value of the recipe, such as training.settings.epochs=20 or model.settings.width=8.
        seed: Seed of split, weights and patches.
        device: auto, cpu, cuda, or mps.
        resume: Continue where an earlier run stopped; --no-resume starts over.

    Returns:
        The card: IoU of both networks and of the water indices, clean and within each budget, with intervals over groups and
        flags; the CPU-minutes of each training and of the evaluation; what the monitor of catastrophic overfitting said.

    Raises:
        UsageError: The threat is not in the chips' unit or allows nothing, or the weights of `against` have another split.

    Command:
        seawall harden chips/mine --threat "linf 2% reflectance" --out runs
    """
    from seawall.pipeline import harden as hardening

    return Result(
        *hardening.harden_chips(
            Path(chips), threat, method=method, model=model, against=_optional_path(against), suite=suite, changes=changes, out=Path(out), seed=seed,
            device=device, resume=resume, progress=progress,
        )
    )  # fmt: skip


def evaluate(
    weights: Path | str,
    chips: Path | str,
    *,
    out: Path | str = Path("runs/evaluation"),
    part: str = "auto",
    uncertainty: str = "softmax",
    calibration: str = "auto",
    key: str = "",
    device: str = "auto",
    progress: Progress = no_progress,
) -> Result:
    """Measure a model on a chip folder: pooled, per chip and per group, with bootstrap intervals over groups.

    Args:
        weights: A .safetensors file of seawall.
        chips: A chip folder with the model's bands and unit.
        out: Folder of the rows; existing rows are not measured again.
        part: auto leaves out the chips that the weights were trained on or selected by; train, val or test is that
            part of the split that the weights carry; all is every chip, and those that the weights have seen are flagged.
        uncertainty: Estimator of uncertainty around the network, as for `seawall predict`, with its calibration if there is one.
        calibration: auto takes the calibration beside the weights, none takes none; else its file. Chips of its scenes are flagged.
        key: File or env:NAME of the key, for weights behind a keyed transform.
        device: auto, cpu, cuda, or mps.

    Returns:
        One row per class, and which chips were measured by which split.

    Raises:
        DataError: The folder has no chip of the part.

    Command:
        seawall evaluate runs/mine/models/index-unet/model.safetensors chips/mine --part test
    """
    from seawall.pipeline import trained_model

    return Result(
        *trained_model.evaluate_chips(
            Path(weights),
            Path(chips),
            Path(out),
            part=part,
            uncertainty=uncertainty,
            calibration=calibration,
            device=device,
            progress=progress,
            key=key,
        )
    )


def attack(
    model: Path | str | SegmentationModel,
    data: Path | str | Sample,
    threat: str | ThreatModel = "",
    *,
    method: Sequence[str] = (),
    suite: str = "",
    out: Path | str | None = None,
    part: str = "auto",
    key: str = "",
    seed: int = 0,
    device: str = "auto",
    sanity_checks: bool = True,
    progress: Progress = no_progress,
) -> Result:
    """Attack a model within a threat in physical units, and run sanity checks on the result.

    Args:
        model: A .safetensors file, or in Python any module with a spec (see `seawall.adapt`).
        data: A chip folder; in Python also a Batch, a mapping with "image" and "mask", or a pair (image, label), in the model's unit.
        threat: Such as "linf 1% reflectance", "l2 2 reflectance" or "linf 0.5 dB".
        method: Registered attack; may be given again. Without one and without a suite it is pgd.
        suite: Run every attack of a suite and print the worst case: seawall, sea, halmosi, or "seawall passes=30".
        out: Folder of the rows (runs/attack for a chip folder); a killed attack continues at the next missing (chip, attack).
        part: auto, all, train, val or test, as for `seawall evaluate`; a Batch is attacked whole.
        seed: Seed of the attacks; the split is the one that the weights carry, whatever the seed.
        key: File or env:NAME of the key, for weights behind a keyed transform.
        device: auto, cpu, cuda, or mps.
        sanity_checks: Sanity checks: a few chips are attacked in other ways, and whatever beats the attack is flagged. They
            cost about 300 passes per chip checked; without them every number has the flag no-sanity-checks.

    Returns:
        One row per attack and the worst case: IoU pooled and per chip, passes, seconds, chips won, and the flags that the
        number carries.

    Raises:
        UsageError: The threat has no unit, or not the model's.

    Command:
        seawall attack runs/mine/models/index-unet/model.safetensors chips/mine --threat "linf 1% reflectance" --suite seawall
    """
    from seawall.pipeline import trained_model

    return Result(
        *trained_model.attack_chips(
            _as_path(model),
            _as_path(data),
            threat,
            method=method,
            suite=suite,
            out=_optional_path(out),
            part=part,
            key=key,
            seed=seed,
            device=device,
            sanity_checks=sanity_checks,
            progress=progress,
        )
    )


def detect_attacks(
    model: Path | str | SegmentationModel,
    data: Path | str | Sample,
    threat: str | ThreatModel = "",
    *,
    method: Sequence[str] = (),
    uncertainty: str = "softmax",
    calibration: str = "auto",
    feature: Sequence[str] = (),
    adaptive: bool = True,
    alarms: float = 0.05,
    flip_map: Path | str | None = None,
    part: str = "auto",
    key: str = "",
    seed: int = 0,
    device: str = "auto",
    progress: Progress = no_progress,
) -> Result:
    """Measure whether attacked chips are noticed by the uncertainty of their maps, and what an adversary who knows the detector still does.

    Args:
        model: A .safetensors file, or in Python any module with a spec (see `seawall.adapt`).
        data: A chip folder; in Python also a Batch, a mapping with "image" and "mask", or a pair (image, label), in the model's unit.
        threat: Such as "linf 1% reflectance".
        method: Registered attack; may be given again. Without one it is pgd.
        uncertainty: Estimator of the uncertainty, which is attacked as a whole, as for `seawall predict`, with its calibration if there is one.
        calibration: auto takes the calibration beside the weights, none takes none; else its file.
        feature: Feature whose detector is shown beside that of all features, such as "entropy inside"; may be given again.
        adaptive: Also attacks that know of the uncertainty or of the detector. Without them the figures are too kind.
        alarms: Share of clean chips of a new group that may be flagged.
        flip_map: Folder for a GeoTIFF per chip: the smallest budget, up to the threat's, at which each pixel changes its class.
        part: auto, all, train, val or test, as for `seawall evaluate`. With auto and test, the chips that the weights were chosen by help to find the
            cut-off.
        key: File or env:NAME of the key, for weights behind a keyed transform.
        seed: Seed of the attacks.
        device: auto, cpu, cuda, or mps.

    Returns:
        One row per attack and detector: AUROC and share detected with intervals over groups, false alarms, chips harmed and harmed
        unnoticed, and IoU and calibration error before and after.

    Raises:
        UsageError: The threat has no unit, or there are too few groups for the false-alarm rate.

    Command:
        seawall detect-attacks runs/mine/models/index-unet/model.safetensors chips/mine --threat "linf 1% reflectance" --alarms 0.1
    """
    from seawall.pipeline.detect_attacks import DetectionOrder, detect_attacks_on

    order = DetectionOrder(threat, tuple(method), tuple(feature), adaptive, alarms, seed)
    return Result(
        *detect_attacks_on(
            _as_path(model), _as_path(data), order, uncertainty=uncertainty, calibration=calibration, part=part,
            flip_map=_optional_path(flip_map), key=key, device=device, progress=progress,
        )
    )  # fmt: skip


def stress(
    model: Path | str | SegmentationModel,
    data: Path | str | Sample,
    *,
    corruption: Sequence[str] = (),
    severity: Sequence[float] = SEVERITIES,
    baseline: str = "",
    out: Path | str | None = None,
    part: str = "auto",
    key: str = "",
    seed: int = 0,
    device: str = "auto",
    progress: Progress = no_progress,
) -> Result:
    """Measure a model under natural perturbations in physical units, beside a threshold model on the same chips.

    Args:
        model: A .safetensors file, or in Python any module with a spec (see `seawall.adapt`).
        data: A chip folder; in Python also a Batch, a mapping with "image" and "mask", or a pair (image, label), in the model's unit.
        corruption: Such as "haze worst=0.4", or several joined as "haze + shot-noise"; may be given again. Without one every
            corruption that fits the chips; those that do not are listed with the reason.
        severity: Above 0 and at most 1, the worst that is still delivered; may be given again.
        baseline: Threshold model that errors are relative to, such as "mndwi > 0"; by default MNDWI, NDWI, VV or VH at its
            published threshold, the first whose bands the chips have.
        out: Folder of the rows (runs/stress for a chip folder); a killed command continues at the next missing (chip, severity).
        part: auto, all, train, val or test, as for `seawall evaluate`; a Batch is measured whole.
        seed: Seed of the corruptions, which are drawn per chip and the same for all severities and both models.
        key: File or env:NAME of the key, for weights behind a keyed transform.
        device: auto, cpu, cuda, or mps.

    Returns:
        One row per corruption, the most harmful first, and their mean: pooled IoU of the clean images and at each severity,
        the mean drop, the corruption error (sum of 1 - IoU over that of the baseline), the relative one (clean
        subtracted), 95 % intervals over groups, and the share of valid pixels that the worst severity keeps.

    Raises:
        UsageError: A corruption is unknown or of another sensor, or a severity is not above 0 and at most 1.

    Command:
        seawall stress runs/mine/models/index-unet/model.safetensors chips/mine --corruption haze --corruption "clouds + shot-noise"
    """
    from seawall.pipeline.stress import stress_model

    return Result(
        *stress_model(
            _as_path(model),
            _as_path(data),
            corruption=corruption,
            severity=severity,
            baseline=baseline,
            out=_optional_path(out),
            part=part,
            key=key,
            seed=seed,
            device=device,
            progress=progress,
        )
    )


def flip_bits(
    model: Path | str | SegmentationModel,
    data: Path | str | Sample,
    *,
    fault: Sequence[str] = (),
    defense: Sequence[str] = (),
    chosen_on: Path | str | Sample | None = None,
    images: int = 8,
    most: int = 100,
    out: Path | str | None = None,
    part: str = "auto",
    seed: int = 0,
    device: str = "auto",
    progress: Progress = no_progress,
) -> Result:
    """Flip bits of a network's 8-bit weights until its IoU on held-out chips is halved, beside random flips.

    Args:
        model: A .safetensors file, or in Python any module with a spec and layers that have weights.
        data: A chip folder; in Python also a Batch, a mapping with "image" and "mask", or a pair (image, label), in the model's unit.
        fault: Such as "progressive-bit-search objective=soft-iou"; may be given again. Without one the search and random flips.
        defense: Weights are read through it, such as "reconstruction" or "clipping group=64"; may be given again. Every fault
            is measured without one as well.
        chosen_on: Chips that the bits are chosen on; by default those of the folder that the weights learned from.
        images: How many patches of them.
        most: Flips after which a search stops; random flips stop after ten times as many.
        out: Folder of the rows (runs/flip-bits for a chip folder).
        part: auto, all, train, val or test, as for `seawall evaluate`; a Batch is measured whole.
        seed: Seed of the patches and of random flips.
        device: auto, cpu, cuda, or mps.

    Returns:
        One row per fault and defense: IoU with 8-bit weights, flips until it is halved, flips made and the IoU after them,
        the share of sign bits among them, the share that checksums detect, and CPU seconds per flip.

    Raises:
        UsageError: A fault, a defense or a number is wrong, or bits would be chosen on chips that are measured.
        ModelError: The model has no weights of convolutions or linear layers, as a threshold has none.

    Command:
        seawall flip-bits runs/mine/models/index-unet/model.safetensors chips/mine --defense reconstruction
    """
    from seawall.pipeline.weight_faults import flip_weight_bits

    return Result(
        *flip_weight_bits(
            _as_path(model), _as_path(data), fault=fault, defense=defense, chosen_on=_as_path(chosen_on), images=images, most=most,
            out=_optional_path(out), part=part, seed=seed, device=device, progress=progress,
        )
    )  # fmt: skip


def sensitivity(
    weights: Path | str,
    chips: Path | str,
    *,
    corruption: Sequence[str] = (),
    levels: int = 5,
    layer: str = "",
    extractor: Path | str | None = None,
    part: str = "auto",
    out: Path | str | None = None,
    seed: int = 0,
    device: str = "auto",
    progress: Progress = no_progress,
) -> Result:
    """Measure how far corruptions move the features of a network, and choose severities of equal harm.

    Args:
        weights: The network.
        chips: A chip folder with the network's bands.
        corruption: Such as "haze worst=0.4"; may be given again. Without one, those that sensitivity-augmentation trains on.
        levels: Severities of equal harm per corruption; the kernel distance is equally spaced at them.
        layer: Module whose features are compared; empty for the last one of the coarsest grid.
        extractor: Weights of another network to take the features from; by default the network itself.
        part: auto, all, train, val or test, as for `seawall evaluate`.
        out: Folder of `sensitivity.html`, a page with the curves, and of their figures; without it nothing is written.
        seed: Seed of the corruptions, which are drawn per chip and the same for all severities.
        device: auto, cpu, or a CUDA device.

    Returns:
        One row per corruption and severity: its physical level and what that is of, the squared kernel distance of the features to those of the
        clean chips and the mean IoU where it was measured, and the number of the equal-harm severity where it is one;
        what the features are of, and the forward passes of the chips.

    Raises:
        UsageError: A corruption is unknown or of another sensor, or there is no such layer.

    Command:
        seawall sensitivity runs/mine/models/index-unet/model.safetensors chips/mine --corruption haze --corruption shot-noise --out sensitivity
    """
    from seawall.pipeline.sensitivity import measure_sensitivity

    return Result(
        *measure_sensitivity(
            Path(weights), Path(chips), corruption=corruption, levels=levels, layer=layer, extractor=_optional_path(extractor),
            part=part, out=_optional_path(out), seed=seed, device=device, progress=progress,
        )
    )  # fmt: skip


def calibrate(
    weights: Path | str,
    chips: Path | str,
    *,
    uncertainty: str = "",
    temperature: str = "global",
    klass: str = "",
    part: str = "auto",
    level: float = 0.9,
    key: str = "",
    device: str = "auto",
    progress: Progress = no_progress,
) -> Result:
    """Calibrate a network on held-out chips, and store it beside the weights: temperature, risks, area, and how known scenes look.

    Args:
        weights: A .safetensors file of seawall; the calibration goes beside it, one file per estimator.
        chips: A chip folder; its groups are the scenes that a guarantee is over, and none may be one of the training.
        uncertainty: Estimator around the network, as for `seawall predict`, which then takes this calibration.
        temperature: global, class, local or none; see docs/uncertainty.md.
        klass: Class of the risks and the area; water, or else the second of two classes, by default.
        part: auto takes the chips that the weights neither learned from nor were chosen by; val or test that part of the split.
        level: Of the interval of the area that is described.
        key: File or env:NAME of the key, for weights behind a keyed transform.
        device: auto, cpu, cuda, or mps.

    Returns:
        One row per usual risk, with its threshold or how many scenes are missing; calibration errors before and after.

    Raises:
        DataError: Chips of the training are among them, or there is one class only.

    Command:
        seawall calibrate runs/mine/models/index-unet/model.safetensors chips/mine --uncertainty ensemble
    """
    from seawall.pipeline import calibrate as calibration

    return Result(
        *calibration.calibrate_chips(
            Path(weights), Path(chips), uncertainty=uncertainty, temperature=calibration.check_temperature(temperature), klass=klass,
            part=part, level=level, key=key, device=device, progress=progress,
        )
    )  # fmt: skip


def predict(
    weights: Path | str,
    scene: Path | str,
    *,
    out: Path | str = Path("maps"),
    klass: str = "",
    names: Sequence[str] = (),
    tile: int | None = None,
    overlap: int | None = None,
    runtime: str = "torch",
    memory_mib: int = 512,
    verify_tiles: int | None = None,
    layers: Sequence[str] = (),
    uncertainty: str = "",
    calibration: str = "auto",
    risk: Sequence[str] = (),
    shift: str = "",
    level: float = 0.9,
    key: str = "",
    device: str = "auto",
    resume: bool = True,
    progress: Progress = no_progress,
) -> Result:
    """Map whole scenes: class, probability of one class, uncertainty and what cannot be told as GeoTIFFs, its area with an interval, STAC items.

    Args:
        weights: A .safetensors file of seawall.
        scene: A raster whose bands have names, a Sentinel-2 SAFE folder or its zip, a folder of them, or a CSV manifest.
        out: Folder of the maps; a killed run continues where it stopped.
        klass: Class whose probability and area are mapped; water, or else the second of two classes, by default.
        names: Band name in file order, for files that name none; give it once per band.
        tile: Side of a tile in pixels; 512, or more for a large receptive field, by default.
        overlap: Pixels that neighboring tiles share; by default as many as make the tiled map equal the whole one.
        runtime: torch, onnx or openvino; the last two need the extra "deploy".
        memory_mib: Memory for buffers; whatever the scene's size.
        verify_tiles: Tiles after which the weights in memory are compared with the checksums of their file, 16 by default; 0
            compares them at the end of a scene only. They are compared before rows are kept, too.
        layers: Further layers: margin or variation-ratio; may be given again.
        uncertainty: Estimator of uncertainty around the network: softmax, tta, "mc-dropout passes=10", ensemble, snapshot-ensemble, laplace;
            an ensemble takes the members beside the weights, or "ensemble members=a.safetensors,b.safetensors".
        calibration: auto takes the calibration of the estimator beside the weights if there is one, none takes none; else its file.
        risk: What the sets of pixels keep, such as "miss 5%" or "false-alarm 1%", on average over new scenes like those of the
            calibration, also "miss 5% from 1%" for scenes with at least 1 % of the class, and
            "miss 5% by distance"; may be given again for the other side. They need a calibration.
        shift: How the mapped scenes differ from those of the calibration, such as "share 2%" of the class; weighs these.
        level: How often the interval of the area holds it.
        key: File or env:NAME of the key, for weights behind a keyed transform.
        device: auto, cpu, cuda, or mps.
        resume: Reuse what an earlier run finished for the same model, scene and settings.

    Returns:
        One row per scene: area in km2 with its interval, and the area that cannot be told; a sentence about it, the calibration and the risks.

    Raises:
        DataError: A risk cannot be controlled; the message says how many scenes the calibration lacks.

    Command:
        seawall predict runs/mine/models/index-unet/model.safetensors scene.tif --out maps
    """
    from seawall.inference.backends import RUNTIMES
    from seawall.pipeline import trained_model

    files, table, failed = trained_model.map_scenes(
        Path(weights), Path(scene), Path(out), klass=klass, names=names, tile=tile, overlap=overlap, runtime=_one_of("runtime", runtime, RUNTIMES), memory_mib=memory_mib, verify_tiles=verify_tiles,
        layers=layers, uncertainty=uncertainty, calibration=calibration, risk=risk, shift=shift, level=level, key=key, device=device, resume=resume,
        progress=progress,
    )  # fmt: skip
    return Result(files, table, failed, done=len(table))


def area(
    map: Path | str,
    *,
    zones: Path | str | None = None,
    out: Path | str | None = None,
    name_column: str = "",
    layer: str = "",
    level: float = 0.9,
    progress: Progress = no_progress,
) -> Result:
    """Measure the area of a map's class, of the whole map or in each zone of a layer, with an interval where the map was calibrated.

    Args:
        map: The <name>.json of a map, its class layer, or a folder with one map.
        zones: Polygons, such as catchments or districts: Shapefile, GeoPackage, GeoJSON or FlatGeobuf, in any coordinate system.
        out: Write the table there: .csv, or with zones .gpkg with their outlines.
        name_column: Column with the names of the zones; "name" by default.
        layer: Layer of the zones, where their file has several.
        level: How often the interval shall hold the area, such as 0.9.

    Returns:
        One row per zone, in km2: mapped, the interval, what cannot be told, corrected for the errors on held-out scenes; the shares of the zone
        that are on the map and that were seen, and notes.

    Raises:
        UsageError: There is no map, or no such column or layer.
        DataError: The zones have no coordinate system or are off the map.

    Command:
        seawall area maps/scene.json --zones districts.gpkg --out areas.csv
    """
    from seawall.pipeline.zone_areas import measure_areas

    return Result(
        *measure_areas(
            Path(map), _optional_path(zones), _optional_path(out), name_column=name_column, layer=layer, level=level,
            progress=stage_progress(progress, "rows"),
        )
    )  # fmt: skip


def certify(
    weights: Path | str,
    source: Path | str,
    *,
    sigma: Sequence[float] = (),
    out: Path | str = Path("certified"),
    tau: float = 0.75,
    alpha: float = 0.001,
    samples: int = 1000,
    look: Sequence[int] = (),
    correction: str = "holm",
    family: str = "chip",
    attack_steps: int = 0,
    part: str = "auto",
    klass: str = "",
    names: Sequence[str] = (),
    tile: int | None = None,
    overlap: int | None = None,
    seed: int = 0,
    key: str = "",
    device: str = "auto",
    resume: bool = True,
    progress: Progress = no_progress,
) -> Result:
    """Certify maps: the pixels whose class no l2 perturbation within a radius changes, and the area that they cover.

    The network is asked again and again under Gaussian noise, and must have been trained with such noise to be certified at many
    pixels (objective gaussian-noise). The radius is sigma times the normal quantile of tau. It suits local changes: see docs/certificates.md.

    Args:
        weights: A .safetensors file of seawall.
        source: A chip folder, or what `seawall predict` maps: a raster, a SAFE product, a folder of them, a CSV manifest.
        sigma: Standard deviation of the noise in the model's unit, such as 0.01 reflectance; given again, one per band.
        out: Folder of the rows or of the maps; a killed run continues where it stopped.
        tau: Least probability of a certified class under noise.
        alpha: Probability that any pixel of a chip, group or scene is certified wrongly.
        samples: The most draws, each a pass of the network; they end as soon as more are not worth it.
        look: Number of draws after which they may end, the last one `samples`; may be given again. By default from the number of pixels.
        correction: holm or bonferroni: how alpha is shared among the pixels.
        family: chip or group: whose pixels alpha is shared among, in a chip folder.
        attack_steps: Steps of an attack within the radius on each chip's weakest certified pixel; 0 for none.
        part: auto, all, train, val or test, as for `seawall evaluate`, in a chip folder.
        klass: Class whose areas are reported for a scene; water, or else the second of two classes, by default.
        names: Band name in file order, for scenes that name none; give it once per band.
        tile: Side of a tile in pixels, as for `seawall predict`; the certified map is the same for all tiles.
        overlap: Pixels that neighboring tiles share, as for `seawall predict`.
        seed: Seed of the noise.
        key: File or env:NAME of the key, for weights behind a keyed transform.
        device: auto, cpu, cuda, or mps.
        resume: Reuse what an earlier run finished on a scene for the same model, scene and settings.

    Returns:
        For chips a row per class: IoU, recall and area with abstention counted as an error; shares, draws and what the attack flipped.
        For scenes a row each: the area that is water under every perturbation within the radius, the area that may be, and draws.

    Raises:
        UsageError: Sigma is missing or does not fit the bands, or a setting is out of its range or has no effect.

    Command:
        seawall certify runs/mine/models/index-unet/model.safetensors scene.tif --sigma 0.01 --out certified
    """
    from seawall.errors import UsageError
    from seawall.pipeline.certify import certify_source
    from seawall.uncertainty.certification import Certification

    if not sigma:
        raise UsageError("sigma: expected the standard deviation of the noise, got none; such as --sigma 0.01")
    settings = Certification(
        sigma=sigma[0] if len(sigma) == 1 else tuple(sigma), tau=tau, alpha=alpha, samples=samples,
        correction=_one_of("correction", correction, CORRECTIONS), looks=tuple(look), seed=seed,
    )  # fmt: skip
    facts, table, failed = certify_source(
        Path(weights), Path(source), Path(out), settings, family=family, attack_steps=attack_steps, part=part, klass=klass,
        names=names, tile=tile, overlap=overlap, key=key, device=device, resume=resume, progress=progress,
    )  # fmt: skip
    return Result(facts, table, failed, done=len(table))


def corrupt(
    chips: Path | str,
    *,
    noise: Sequence[str] = (),
    out: Path | str = Path("chips-corrupted"),
    part: str = "all",
    changes: Sequence[str] = (),
    seed: int = 0,
    progress: Progress = no_progress,
) -> Result:
    """Put label noise into a chip folder, within an exact budget; the new folder records the changes of each chip.

    Args:
        chips: A chip folder; it stays as it is.
        noise: Such as "dilate 10%" or "erode 30 m"; given again, the noises are applied in order.
        out: The new folder, with corruptions.jsonl; a killed run continues where it stopped.
        part: all, or only the train, val or test part. The new folder keeps the split, and training on it uses the same parts.
        changes: Change how the chips are split, as for `seawall train`: split.test=0.2, split.by=block, or seed=3.
        seed: Seed of the noise; the split has its own, which is 0 unless --set changes it.

    Returns:
        One row per change of class, pooled over the chips.

    Raises:
        UsageError: The noise is unknown, or its budget is over 100 %.

    Command:
        seawall corrupt chips/mine --noise "dilate 10%" --out chips/dilated
    """
    from seawall.pipeline import corrupt_labels

    return Result(
        *corrupt_labels.corrupt_chips(
            Path(chips), Path(out), noise=noise, part=part, changes=changes, seed=seed, progress=progress
        )
    )


def poison(
    chips: Path | str,
    *,
    poison: str = "backdoor",
    share: float = 0.1,
    out: Path | str = Path("chips-poisoned"),
    part: str = "all",
    labels: str = "poisoned",
    weights: Path | str | None = None,
    target: str = "",
    to: str = "land",
    changes: Sequence[str] = (),
    seed: int = 0,
    progress: Progress = no_progress,
) -> Result:
    """Poison a share of the chips of a folder, within an exact budget; a new folder records which chips and what changed.

    Args:
        chips: A chip folder; it stays as it is.
        poison: Such as "backdoor eps=0.1 trigger=pattern klass=water to=land"; eps is in the unit of the images.
        share: Share of the chips that is poisoned.
        out: The new folder, with poisons.jsonl.
        part: all, or only the train, val or test part. The new folder keeps the split, and training on it uses the same parts.
        labels: poisoned, or keep: images alone change, as whoever knows the trigger uses it later.
        weights: Network that a crafted poison (gradient-matching, meta-poison) is made with.
        target: What a crafted poison aims at: CHIP, or CHIP:row,col,height,width in pixels. This chip stays as it is.
        to: Class that the target shall be given.
        changes: Change how the chips are split, as for `seawall train`: split.test=0.2, split.by=block, or seed=3.
        seed: Seed of the choice of chips and of the poison.

    Returns:
        One row per poisoned chip.

    Raises:
        UsageError: The poison, the part or the target is wrong.

    Command:
        seawall poison chips/mine --poison "backdoor eps=0.1" --share 0.1 --part train --out chips/poisoned
    """
    from seawall.pipeline import poison_chips

    return Result(
        *poison_chips.poison_folder(
            Path(chips), Path(out), poison=poison, share=share, part=part, changes=changes, labels=labels,
            weights=Path(weights) if weights else None, target=target, to=to, seed=seed, progress=progress,
        )
    )  # fmt: skip


def find_poisons(
    weights: Path | str,
    chips: Path | str,
    *,
    trusted: Path | str | None = None,
    alarms: float = 0.05,
    layer: str = "",
    device: str = "auto",
    progress: Progress = no_progress,
) -> Result:
    """Rank the chips that a network learned from by how suspect they are of being poisoned.

    Args:
        weights: A network that learned from the chips.
        chips: The chip folder that it learned from, of which its training part is searched; where the folder has a poisons.jsonl, what was
            caught is counted.
        trusted: Folder of chips that are known to be clean: those that the network neither learned from nor was chosen by give the cut-off.
        alarms: With trusted chips, the share of clean chips that may be flagged, on average.
        layer: Module whose features are looked at; empty for the last one before the logits.
        device: auto, cpu, or a CUDA device.

    Returns:
        One row per chip, the most suspect first by spectral signatures.

    Raises:
        UsageError: There is no such layer, or there are too few trusted chips.

    Command:
        seawall find-poisons runs/mine/models/index-unet/model.safetensors chips/poisoned --trusted chips/checked
    """
    from seawall.pipeline import poison_chips

    return Result(
        *poison_chips.find_poisoned(
            Path(weights), Path(chips), trusted=Path(trusted) if trusted else None, alarms=alarms, layer=layer,
            device=device, progress=progress,
        )
    )  # fmt: skip


def audit_labels(
    chips: Path | str,
    *,
    weights: Path | str | None = None,
    out: Path | str = Path("label-audit"),
    folds: int = 4,
    model: str = "unet",
    epochs: int = 12,
    rule: str = "",
    worst: int = 20,
    relabel: Path | str | None = None,
    seed: int = 0,
    device: str = "auto",
    progress: Progress = no_progress,
) -> Result:
    """Find wrong labels: rank the chips of a folder by suspect pixels, and show the worst on a contact sheet.

    Args:
        chips: A chip folder; it stays as it is.
        weights: A model that was not trained on these chips; without one, a model is trained per fold of groups.
        out: Gets suspects.csv, suspects.jsonl, sheet.html and sheet.png; a killed run continues where it stopped.
        folds: Each fold's groups are predicted by a model trained on the other folds.
        model: Registered network for the folds.
        epochs: Passes over the chips of each fold's model.
        rule: A second source of labels beside the model, such as "mndwi > 0".
        worst: Chips on the contact sheet.
        relabel: Folder to write the chips to with surely wrong labels changed, round by round; the chips stay as they are.
        seed: Seed of folds and training.
        device: auto, cpu, cuda, or mps.

    Returns:
        One row per chip of the contact sheet.

    Raises:
        DataError: There are fewer groups than folds.

    Command:
        seawall audit-labels chips/mine --rule "mndwi > 0" --out audits/mine
    """
    from seawall.label_audit.audit import audit_chips

    return Result(
        *audit_chips(
            Path(chips), Path(out), weights=_optional_path(weights), folds=folds, model=model, epochs=epochs, rule=rule, worst=worst,
            relabel=_optional_path(relabel), seed=seed,
            device=device, progress=progress,
        )
    )  # fmt: skip


def compare_labels(
    first: Path | str,
    second: Path | str,
    *,
    reference: Path | str | None = None,
    out: Path | str | None = None,
    value: int = 1,
    all_touched: bool = False,
) -> Result:
    """Compare two water masks of the same ground, such as an index mask and a vector map, and say where to trust which.

    Args:
        first: A mask as a raster, or a vector layer.
        second: The other one; vector layers are burned onto the raster's grid.
        reference: A third mask that counts as the truth.
        out: Write the map of disagreement there, as a GeoTIFF.
        value: What means water in a raster.
        all_touched: Every pixel that a vector layer touches is water, not only those whose center is inside.

    Returns:
        Agreement, areas and shoreline distance in meters, and one row per distance from the shoreline.

    Command:
        seawall compare-labels ndwi.tif rivers.gpkg --reference hand.tif --out disagreement.tif
    """
    from seawall.label_audit.compare import compare_label_files as compare

    return Result(
        *compare(
            Path(first),
            Path(second),
            reference=_optional_path(reference),
            out=_optional_path(out),
            value=value,
            all_touched=all_touched,
        )
    )


def make_key(file: Path | str) -> Result:
    """Write a new secret key for a keyed transform: 32 random bytes in hexadecimal digits, readable by the owner alone.

    Args:
        file: Where to write it; an existing file is never overwritten, because weights may need its key.

    Returns:
        The path of the file; the key is not printed.

    Raises:
        UsageError: The file exists or cannot be written.

    Command:
        seawall make-key water.key
    """
    from seawall.keyed_transforms.keys import make_key_file

    make_key_file(Path(file))
    return Result({"key": str(file)})


def report(run: Path | str) -> Result:
    """Write the one-file HTML report of a run folder again.

    Args:
        run: A run folder, such as runs/demo-1a2b3c4d.

    Command:
        seawall report runs/demo-1a2b3c4d
    """
    from seawall.report.page import write_report

    page = write_report(Path(run))
    return Result(facts={"report": str(page), "size_kb": round(page.stat().st_size / 1024)})


def methods(kind: str = "", *, name: str = "") -> Result:
    """List the registered methods, or the settings of one.

    Args:
        kind: attack, attack-loss, goal, suite, noise, corruption, keyed-transform, fault, weight-defense, poison, detector, model, loss, objective or uncertainty; empty lists all.
        name: Show the settings of this method.

    Command:
        seawall methods --kind attack
    """
    from seawall import installation

    return Result(*installation.setting_rows(kind, name)) if name else Result(table=installation.method_rows(kind))


def doctor() -> Result:
    """Print versions, devices, raster drivers and what is missing.

    Command:
        seawall doctor
    """
    from seawall import installation

    return Result(table=installation.package_rows(), facts=installation.machine_facts())


def _optional_path(path: Path | str | None) -> Path | None:
    return None if path is None else Path(path)


def _as_path(given: Path | str | Other) -> Path | Other:
    return Path(given) if isinstance(given, str) else given


def _one_of(where: str, value: str, known: Sequence[Option]) -> Option:
    from seawall.errors import UsageError, did_you_mean

    for choice in known:
        if value == choice:
            return choice
    raise UsageError(f"{where}: unknown {value!r}; {did_you_mean(value, known)}")


def _devices_change(devices: int | None) -> tuple[str, ...]:
    return () if devices is None else (f"training.devices={devices}",)


def _label_map(pairs: Sequence[str]) -> dict[int, int] | None:
    from seawall.errors import UsageError

    found = {}
    for pair in pairs:
        raw, _, value = pair.partition("=")
        try:
            found[int(raw)] = int(value)
        except ValueError as bad:
            raise UsageError(f"label_map: expected raw=class, got {pair!r}; for example -1=255") from bad
    return found or None


VERBS: tuple[Callable[..., Result], ...] = (
    run,
    curate,
    train,
    harden,
    evaluate,
    attack,
    detect_attacks,
    stress,
    flip_bits,
    sensitivity,
    calibrate,
    predict,
    area,
    certify,
    corrupt,
    poison,
    find_poisons,
    audit_labels,
    compare_labels,
    make_key,
    report,
    methods,
    doctor,
)
"""The verbs, in the order of `seawall --help`."""

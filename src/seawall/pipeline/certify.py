"""The verb `certify`: what holds under every small perturbation, on the chips of a folder or over whole scenes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from seawall.data.index import is_chip_folder
from seawall.errors import UsageError, did_you_mean
from seawall.inference.certify import SceneCertifier
from seawall.inference.layers import slug_of
from seawall.keyed_transforms.keys import read_key
from seawall.models.weights import load_model
from seawall.pipeline.certify_chips import FAMILIES, certify_chips
from seawall.result import Failed, MutableRow, Progress, stage_progress
from seawall.uncertainty.certification import Certification


def certify_source(
    weights: Path, source: Path, out: Path, certification: Certification, *, family: str, attack_steps: int, part: str, klass: str,
    names: Sequence[str], tile: int | None, overlap: int | None, key: str, device: str, resume: bool, progress: Progress,
) -> tuple[MutableRow, list[MutableRow], Failed]:  # fmt: skip
    """Certify the chips of a folder, or scenes.

    Raises:
        UsageError: A setting is out of its range, or is for chips and the source is a scene, or the other way round.
    """
    if family not in FAMILIES:
        raise UsageError(f"family: unknown {family!r}; {did_you_mean(family, FAMILIES)}")
    if attack_steps < 0:
        raise UsageError(f"attack_steps: expected 0 or more, got {attack_steps}; 0 for no attack")
    of_chips = {"part": part != "auto", "family": family != FAMILIES[0], "attack_steps": attack_steps != 0}
    of_scenes = {
        "klass": klass, "names": names, "tile": tile is not None, "overlap": overlap is not None, "resume": not resume,
    }  # fmt: skip
    chips = is_chip_folder(source)
    for option, given in (of_scenes if chips else of_chips).items():
        if given:
            kind = "a chip folder" if chips else "a scene"
            raise UsageError(f"{option}: expected nothing for {kind}, where it has no effect; leave it out")
    if chips:
        return certify_chips(
            weights, source, out, certification, part=part, family=family, attack_steps=attack_steps, key=key,
            device=device, progress=progress,
        )  # fmt: skip
    certifier = SceneCertifier(
        load_model(weights, key=read_key(key) if key else None), out, certification, klass=klass, tile=tile, overlap=overlap,
        bands=tuple(names), device=device, resume=resume, progress=stage_progress(progress, "scenes"),
    )  # fmt: skip
    made, failed = certifier.scenes(source)
    table: list[MutableRow] = [
        {
            "scene": done.name, f"certified_{slug_of(done.klass)}_km2": done.certified_km2, "may_be_km2": done.may_be_km2,
            "abstained_km2": done.abstained_km2, "certified_share": done.certified_share, "draws": done.draws,
            "flags": ", ".join(done.flags),
        }
        for done in made
    ]  # fmt: skip
    facts: MutableRow = {done.name: str(out / done.file) for done in made}
    return facts | ({"radius": made[0].radius} if made else {}), table, failed

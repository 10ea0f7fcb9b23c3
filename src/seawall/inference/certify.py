"""Certified maps of whole scenes, in bounded memory and resumable: the class under every perturbation within a radius, and its area."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import rasterio
from pydantic import TypeAdapter, ValidationError
from torch import nn

from seawall.errors import ImageryError, ModelError, RunError, SeawallError
from seawall.geo.cog import ColormapEntry
from seawall.geo.raster import CogWriter
from seawall.inference.backends import find_device, is_out_of_memory, open_runtime
from seawall.inference.layers import NODATA, ClassColor, class_palette
from seawall.inference.output_buffer import OutputBuffer
from seawall.inference.predict import GDAL_CACHE_BYTES
from seawall.inference.scene import OpenScene, open_scene
from seawall.inference.scene_votes import SceneVotes, stored_votes
from seawall.inference.settings import SceneJob, find_scenes
from seawall.inference.tiling import TilePlan, plan_tiles
from seawall.io import RunLock, file_sha256, write_atomic
from seawall.models.checksums import WeightGuard
from seawall.models.identity import identify
from seawall.models.receptive_field import receptive_field
from seawall.models.weights import check_finite, spec_of, state_of
from seawall.result import StageProgress, no_progress
from seawall.uncertainty.certification import (
    ABSTAIN,
    Certification,
    LookResult,
    certified_classes,
    run_looks,
)

ABSTAIN_COLOR: ClassColor = (213, 94, 0)
"""Vermilion, which color-blind readers tell from the blue of water and the pale land."""
CERTIFIED_FORMAT = 1
"""Version of the map; it is part of the key, so a map of another version is made again."""


@dataclass(frozen=True)
class CertifiedScene:
    """A certified map: its file and the areas that it guarantees. Areas are None without georeference.

    Args:
        name: Name of the map.
        source: File name of the scene.
        file: Name of the layer: a class index, 254 where no class is certified, 255 where nothing is seen.
        digest: SHA-256 of the layer.
        key: Digest of model, scene and settings; the same key is the same map.
        model: Digest of the model.
        scene: Digest of the scene file.
        classes: Class names.
        klass: Class that `certified_km2` and `may_be_km2` are of.
        radius: What a perturbation may be, in words.
        sigma: Standard deviation of the noise of each band, in the unit of the image.
        tau: Least probability of a certified class.
        alpha: Probability, over the draws, that any pixel is certified wrongly.
        correction: How alpha is shared among the pixels.
        draws: Passes over the scene.
        needed: Votes of a certified pixel, at least; None where no number was enough.
        pixels: Seen pixels.
        certified_share: Share of them with a certificate; None without any.
        certified_km2: Area that is of the class under every perturbation within the radius.
        may_be_km2: Area that may be of the class under one: all that is not certified as another class.
        abstained_km2: Area without a certificate.
        class_km2: Certified area of each class.
        flags: Findings about scene and tiles.
        seconds: Time it took.
        reused: Whether the map was there already.
    """

    name: str
    source: str
    file: str
    digest: str
    key: str
    model: str
    scene: str
    classes: tuple[str, ...]
    klass: str
    radius: str
    sigma: tuple[float, ...]
    tau: float
    alpha: float
    correction: str
    draws: int
    needed: int | None
    pixels: int
    certified_share: float | None
    certified_km2: float | None
    may_be_km2: float | None
    abstained_km2: float | None
    class_km2: Mapping[str, float | None]
    flags: tuple[str, ...] = ()
    seconds: float = 0.0
    reused: bool = False


@dataclass(frozen=True)
class SceneCertifier:
    """Certifies scenes into a folder.

    Args:
        model: Any module with a `spec` that gives logits.
        out: Folder for `<name>.certified.tif` and `<name>.certified.json`. The JSON comes last: without it there is no map.
        certification: What is certified.
        klass: Class whose areas are reported; water, or the second of two classes, where "".
        tile: Pixels of a tile's side; as for `predict` where None.
        overlap: Pixels that neighboring tiles share; as for `predict` where None.
        batch: Draws per call of the network; 0 takes 1 on the CPU and 8 on an accelerator.
        bands: Names of the scene's bands, where its file has none.
        device: auto, cpu, cuda, cuda:1, mps.
        resume: Keep what an earlier run finished, if model, scene and settings are the same.
        progress: Called after each tile of each look.
    """

    model: nn.Module
    out: Path
    certification: Certification
    klass: str = ""
    tile: int | None = None
    overlap: int | None = None
    batch: int = 0
    bands: tuple[str, ...] = ()
    device: str = "auto"
    resume: bool = True
    progress: StageProgress = no_progress

    def scenes(
        self, source: Path | str | Sequence[Path | str]
    ) -> tuple[tuple[CertifiedScene, ...], tuple[tuple[str, str], ...]]:
        """Certify scenes; one that fails is listed with its reason and the others go on.

        Args:
            source: A scene, a folder of them, a CSV manifest, or paths, as for `predict`.

        Returns:
            The maps, and (scene, reason) of those that failed.

        Raises:
            UsageError: There is no scene, the class is unknown, or sigma does not fit the bands.
            RunError: Another run works in the folder.
        """
        jobs, spec = find_scenes(source, self.out), spec_of(self.model)
        spec.mapped_class(self.klass)
        self.certification.sigma_of(spec)
        made: list[CertifiedScene] = []
        failed: list[tuple[str, str]] = []
        with RunLock(self.out):
            for job in jobs:
                try:
                    made.append(self.certify(job))
                except SeawallError as bad:
                    failed.append((str(job.path), str(bad)))
                except Exception as bad:  # one scene must not take the others with it, whatever it found
                    failed.append((str(job.path), f"{type(bad).__name__}: {bad}"))
        return tuple(made), tuple(failed)

    def certify(self, job: SceneJob) -> CertifiedScene:
        """Certify one scene, or return the map that is there; the caller holds the lock of the folder.

        Raises:
            ImageryError: The scene cannot be read, lacks a band or has another unit.
            ModelError: The model gives no finite logits of its classes, or its weights change meanwhile.
            RunError: The disk is full, or a tile does not fit into memory.
        """
        begin, spec = time.monotonic(), spec_of(self.model)
        if not 2 <= len(spec.classes) <= ABSTAIN:
            raise ModelError(f"model: expected 2 to {ABSTAIN} classes, got {len(spec.classes)}; a map pixel is a byte")
        check_finite(state_of(self.model), "model")
        with (
            rasterio.Env(GDAL_CACHEMAX=GDAL_CACHE_BYTES),
            open_scene(job.path, spec, bands=self.bands) as scene,
        ):
            identity, notes = identify(self.model), []
            if identity.unknown:
                notes.append(f"model identity unknown: {identity.unknown}; nothing is taken up or reused")
            settings = [asdict(self.certification), self.tile, self.overlap, self.klass, list(self.bands)]
            plain = [CERTIFIED_FORMAT, identity.digest, scene.digest, settings]
            key = hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
            if self.resume and (found := _read_certified(self.out, job.name, key)):
                return replace(found, reused=True)
            grid = scene.source.grid
            layers = tuple(f"votes{k}" for k in range(1, len(spec.classes)))
            buffer = OutputBuffer(
                self.out / f".{job.name}.certified.part", key, layers, grid.height, grid.width, "uint16"
            )
            if not self.resume:
                buffer.remove()
            plan, flags = plan_tiles(self.model, grid.height, grid.width, self.tile, self.overlap)
            try:
                look = self._draw(scene, buffer, plan, job.name)
            except (ImageryError, ModelError):
                buffer.remove()  # another run fails the same way, so nothing is kept
                raise
            flags = (*scene.flags, *notes, *flags, *getattr(self.model, "flags", ()))
            result = self._describe(job, scene, look, key, identity.digest, flags)
            result = _write_certified(result, scene, buffer, self.out, begin)
            buffer.remove()
            return result

    def _draw(self, scene: OpenScene, buffer: OutputBuffer, plan: TilePlan, name: str) -> LookResult:
        """Add draws until a look ends them; the votes are in the buffer then."""
        batch = self.batch or (1 if find_device(self.device).type == "cpu" else 8)
        votes = SceneVotes(scene, buffer, plan, self.certification, WeightGuard.of(self.model))

        def tick(done: int, total: int) -> None:
            self.progress(done, total, name)

        try:
            with open_runtime(self.model, device=self.device) as predict:
                pixels = votes.seen_pixels()
                if not pixels:
                    votes.draw(0, predict, batch, tick)  # marks every pixel as unseen
                return run_looks(self.certification, pixels, lambda until: votes.draw(until, predict, batch, tick))
        except (MemoryError, RuntimeError) as bad:
            if not is_out_of_memory(bad):
                raise
            rows, cols = plan.shape
            raise RunError(
                f"tile: expected {batch} of {rows}x{cols} pixels to fit into memory, got out of memory; use a smaller --tile (what is "
                "finished is kept)"
            ) from bad

    def _describe(
        self, job: SceneJob, scene: OpenScene, look: LookResult, key: str, model: str, flags: tuple[str, ...]
    ) -> CertifiedScene:
        spec, settings = scene.spec, self.certification
        reach = receptive_field(self.model).reach
        return CertifiedScene(
            name=job.name, source=scene.name, file=f"{job.name}.certified.tif", digest="", key=key, model=model,
            scene=scene.digest, classes=spec.classes, klass=spec.mapped_class(self.klass),
            radius=settings.radius_text(spec, reach), sigma=settings.sigma_of(spec), tau=settings.tau,
            alpha=settings.alpha, correction=settings.correction, draws=look.draws, needed=look.needed,
            pixels=look.pixels, certified_share=look.certified / look.pixels if look.pixels else None,
            certified_km2=None, may_be_km2=None, abstained_km2=None, class_km2={}, flags=flags,
        )  # fmt: skip


def _write_certified(
    result: CertifiedScene, scene: OpenScene, buffer: OutputBuffer, out: Path, begin: float
) -> CertifiedScene:
    """Write the layer, then the JSON; the JSON of an older map goes first."""
    (out / f"{result.name}.certified.json").unlink(missing_ok=True)
    areas = scene.source.grid.row_areas_m2()
    counted = np.zeros((len(result.classes) + 1, scene.source.grid.height), np.int64)
    palette: dict[int, ColormapEntry] = {**class_palette(result.classes), ABSTAIN: ABSTAIN_COLOR, NODATA: (0, 0, 0, 0)}
    tags = {
        "SEAWALL_KEY": result.key, "SOURCE": result.source, "CLASSES": json.dumps(result.classes), "RADIUS": result.radius,
        "QUANTITY": f"index of the class under every perturbation within the radius; {ABSTAIN} where no class is certified",
    }  # fmt: skip
    with CogWriter(
        out / result.file, scene.source.grid, "uint8", bands=("certified",), nodata=NODATA, tags=tags, colormap=palette
    ) as writer:
        for row, votes, seen in stored_votes(buffer, result.draws):
            classes = np.where(seen, certified_classes(votes, result.needed), NODATA).astype(np.uint8)
            writer.write(classes, row)
            for k, value in enumerate((*range(len(result.classes)), ABSTAIN)):
                counted[k, row : row + len(classes)] = (classes == value).sum(1)
    if areas is not None:
        *each, abstained = (counted @ areas / 1e6).tolist()
        own = each[result.classes.index(result.klass)]
        result = replace(
            result, certified_km2=own, may_be_km2=own + abstained, abstained_km2=abstained,
            class_km2=dict(zip(result.classes, each, strict=True)),
        )  # fmt: skip
    result = replace(result, digest=file_sha256(out / result.file), seconds=time.monotonic() - begin)
    write_atomic(out / f"{result.name}.certified.json", json.dumps({"result": asdict(result)}, indent=1))
    return result


def _read_certified(out: Path, name: str, key: str) -> CertifiedScene | None:
    """Return the map that is in a folder, if it was made with this key and its layer is whole."""
    try:
        stored = json.loads((out / f"{name}.certified.json").read_text(encoding="utf-8"))["result"]
        result = TypeAdapter(CertifiedScene).validate_python(stored)
        whole = result.key == key and file_sha256(out / result.file) == result.digest
    except (OSError, ValueError, KeyError, TypeError, ValidationError):
        return None
    return result if whole else None

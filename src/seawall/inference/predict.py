"""Prediction over whole scenes: class map, uncertainty and area, in bounded memory and resumable."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from pathlib import Path

import numpy as np
import rasterio
from torch import nn

from seawall.arrays import FloatArray
from seawall.errors import ImageryError, ModelError, RunError, SeawallError
from seawall.geo.radiometry import Hints
from seawall.geo.raster import Window
from seawall.inference.backends import Runtime, find_device, is_out_of_memory, open_runtime
from seawall.inference.export import export_products, read_finished
from seawall.inference.guarantee import Guarantee, check_guarantee, with_guarantee
from seawall.inference.layers import NODATA, ReportedClass, chosen_layers, encode_layers, layer_names
from seawall.inference.output_buffer import OutputBuffer
from seawall.inference.products import SceneResult, Totals, count_strip
from seawall.inference.scene import OpenScene, open_scene
from seawall.inference.settings import PredictSettings, SceneJob, SceneReport, clean_name, find_scenes, scene_stem
from seawall.inference.tiling import Predict, TilePlan, blend_tiles, plan_tiles
from seawall.io import RunLock
from seawall.models.checksums import WeightChecksums, WeightGuard
from seawall.models.identity import identify, model_digest
from seawall.models.weights import check_finite, read_checksums, spec_of, state_of, weights_digest
from seawall.result import StageProgress, no_progress
from seawall.types import unit_text
from seawall.uncertainty.predictor import passes_of

__all__ = [
    "SceneJob",
    "SceneReport",
    "SceneResult",
    "PredictSettings",
    "find_scenes",
    "model_digest",
    "predict_many",
    "predict_scene",
]


GDAL_CACHE_BYTES = 128 * 2**20
"""Bytes for GDAL's block cache; reads follow the blocks, so a larger cache would only copy the scene into memory."""
PRODUCT_FORMAT = 3
"""Version of the products; it is part of the key, so a map of another version is made again."""


def predict_scene(
    model: nn.Module,
    path: Path | str,
    out: Path | str,
    *,
    name: str = "",
    when: str = "",
    klass: str = "",
    tile: int | None = None,
    overlap: int | None = None,
    batch: int = 0,
    layers: Sequence[str] = (),
    runtime: Runtime = "torch",
    bands: Sequence[str] = (),
    sensor: str = "",
    hints: Hints = Hints(),
    memory_mib: int = 512,
    verify_tiles: int | None = None,
    device: str = "auto",
    resume: bool = True,
    progress: StageProgress = no_progress,
    weights: Path | str | None = None,
    guarantee: Guarantee = Guarantee(),
) -> SceneResult:
    """Map a whole scene: class, probability and uncertainty as cloud-optimized GeoTIFFs, area, STAC.

    A killed run leaves nothing under the final names; the next one reuses the rows that are finished.

    Args:
        model: Any module with a `spec` that gives logits.
        path: The scene: a raster file whose bands have names, or a Sentinel-2 SAFE product (folder or zip).
        out: Folder for the layers (see `seawall.inference.layers.LAYERS`), each as `<name>.<layer>.tif` with a QGIS style
            beside it, and `<name>.json`. The JSON comes last: without it there is no map.
        name: Name of the products; the file's by default.
        when: Acquisition time, ISO 8601; from the file's tags or name by default.
        klass: See `PredictSettings`, as for all settings up to verify_tiles.
        device: auto, cpu, cuda, cuda:1, mps.
        resume: Keep what an earlier run finished, if model, scene and settings are the same.
        progress: Called after each batch of tiles.
        weights: File that the model was read from, for the link in its STAC Item, and for the checksums that the weights in
            memory are compared with; None writes the weights to `out` and takes the checksums of the memory at the start.
        guarantee: What the map promises by the calibration of the model, see `seawall.inference.guarantee.guarantee_of`.

    Raises:
        UsageError: A setting is out of its range, or the class is unknown.
        ImageryError: The scene cannot be read, lacks a band or has another unit.
        ModelError: The model gives no finite logits of its classes, writes into its input, or its weights change meanwhile.
        RunError: Another run works in the folder, the disk is full, or a tile does not fit into memory.
    """
    settings = PredictSettings(
        klass,
        tile,
        overlap,
        batch,
        tuple(layers),
        runtime,
        tuple(bands),
        sensor,
        hints,
        memory_mib,
        verify_tiles,
    )
    job = SceneJob(Path(path), clean_name(name or scene_stem(Path(path))), when)
    with _lock_folder(Path(out)) as notes:
        return _scene_predictor(model, Path(out), settings, device, resume, progress, notes, weights, guarantee).map(
            job
        )


def predict_many(
    model: nn.Module,
    source: Path | str | Sequence[Path | str],
    out: Path | str,
    *,
    settings: PredictSettings = PredictSettings(),
    device: str = "auto",
    resume: bool = True,
    progress: StageProgress = no_progress,
    weights: Path | str | None = None,
    guarantee: Guarantee = Guarantee(),
) -> SceneReport:
    """Map many scenes; one that fails is listed with its reason and the others go on.

    Args:
        model: Any module with a `spec`.
        source: A scene, a folder of rasters and SAFE folders, a CSV manifest (columns path, name, when; relative to the manifest), or paths.
        out: Folder for the products of all of them.
        settings: Settings of the prediction.
        device: See `predict_scene`.
        resume: See `predict_scene`; scenes whose products are there and whole are not computed again.
        progress: See `predict_scene`.
        weights: See `predict_scene`.
        guarantee: See `predict_scene`.

    Raises:
        UsageError: There is no scene, or two would get the same name.
        RunError: Another run works in the folder.
    """
    jobs = find_scenes(source, Path(out))
    find_device(device)
    made: list[SceneResult] = []
    failed: list[tuple[str, str]] = []
    with _lock_folder(Path(out)) as notes:
        mapper = _scene_predictor(model, Path(out), settings, device, resume, progress, notes, weights, guarantee)
        for job in jobs:
            try:
                made.append(mapper.map(job))
            except SeawallError as bad:
                failed.append((str(job.path), str(bad)))
            except Exception as bad:  # one scene must not take the others with it, whatever it found
                failed.append((str(job.path), f"{type(bad).__name__}: {bad}"))
    return SceneReport(tuple(made), tuple(failed))


@contextlib.contextmanager
def _lock_folder(out: Path) -> Iterator[tuple[str, ...]]:
    lock = RunLock(out)
    try:
        lock.__enter__()
    except OSError as bad:
        raise RunError(
            f"{out}: expected a folder that can be written, got {bad.strerror or bad}; choose another one"
        ) from bad
    try:
        yield ("took over the folder from a run that died",) if lock.took_over else ()
    finally:
        lock.__exit__(None, None, None)


def _scene_predictor(
    model: nn.Module, out: Path, settings: PredictSettings, device: str, resume: bool, progress: StageProgress,
    notes: tuple[str, ...], weights: Path | str | None, guarantee: Guarantee,
) -> _ScenePredictor:  # fmt: skip
    """Return what maps scenes, with checksums of the weights that hold for all of them.

    Raises:
        UsageError: The class is unknown, or the calibration is of another one.
    """
    guarantee.check_class(spec_of(model).mapped_class(settings.klass))
    path = None if weights is None else Path(weights)
    guard = None
    if settings.tiles_between_checks:
        guard = WeightGuard.of(model, None if path is None else _checksums_of_file(path))
    return _ScenePredictor(model, out, settings, device, resume, progress, notes, path, guard, guarantee)


def _checksums_of_file(path: Path) -> WeightChecksums | None:
    """Return the checksums of a weights file; None for a file of another library, which a caller's own network may come from."""
    try:
        return read_checksums(path)
    except ModelError:
        return None


@dataclass(frozen=True)
class _ScenePredictor:
    model: nn.Module
    out: Path
    settings: PredictSettings
    device: str
    resume: bool
    progress: StageProgress
    notes: tuple[str, ...]
    weights: Path | None
    guard: WeightGuard | None
    guarantee: Guarantee

    def map(self, job: SceneJob) -> SceneResult:
        """Map one scene, or return the map that is there."""
        begin = time.monotonic()
        spec = spec_of(self.model)
        settings = replace(self.settings, klass=spec.mapped_class(self.settings.klass))
        reported = ReportedClass(spec.klass(settings.klass), self.guarantee.unsure)
        if len(spec.classes) > NODATA:
            raise ModelError(
                f"model: expected at most {NODATA} classes, got {len(spec.classes)}; a map pixel is a byte"
            )
        if self.guard is not None:
            self.guard.verify()
        check_finite(state_of(self.model), "model")
        find_device(self.device)
        with (
            rasterio.Env(GDAL_CACHEMAX=GDAL_CACHE_BYTES),
            open_scene(job.path, spec, bands=settings.bands, sensor=settings.sensor, hints=settings.hints) as scene,
        ):
            identity, notes = identify(self.model), self.notes
            if identity.unknown:
                notes = (*notes, f"model identity unknown: {identity.unknown}; nothing is taken up or reused")
            promised = self.guarantee.identity()
            plain = [PRODUCT_FORMAT, identity.digest, scene.digest, job.when, settings.identity(), promised]
            key = hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
            if self.resume and (found := read_finished(self.out, job.name, key)):
                return replace(found, reused=True)
            check_guarantee(self.guarantee, scene)
            grid = scene.source.grid
            # Other runtimes give the mean of several passes and not how far they disagree.
            layers = chosen_layers(settings.layers, passes_of(self.model) if settings.runtime == "torch" else 1)
            buffer = OutputBuffer(self.out / f".{job.name}.part", key, layers, grid.height, grid.width)
            if not self.resume:
                buffer.remove()
            try:
                plan, flags = plan_tiles(self.model, grid.height, grid.width, settings.tile, settings.overlap)
                totals = self._predict(scene, buffer, reported, settings, plan, job.name)
            except (ImageryError, ModelError):
                buffer.remove()  # another run fails the same way, so nothing is kept
                raise
            notes = (*notes, *flags, *getattr(self.model, "flags", ()))
            result = _result(job, scene, settings, layers, totals, key, identity.digest, notes)
            result = with_guarantee(replace(result, tiles=plan.count), scene, buffer, self.guarantee)
            return export_products(
                self.model, result, scene, buffer, self.out, job.when, begin, self.weights, self.guarantee
            )

    def _predict(
        self,
        scene: OpenScene,
        buffer: OutputBuffer,
        reported: ReportedClass,
        settings: PredictSettings,
        plan: TilePlan,
        name: str,
    ) -> Totals:
        """Fill the buffer; afterwards check that the weights are still those that the key was made of."""
        before = weights_digest(self.model)
        totals = fill_buffer(
            self.model, scene, buffer, reported, settings, plan, self.device, lambda d, t: self.progress(d, t, name),
            self.guard,
        )  # fmt: skip
        if weights_digest(self.model) != before:
            raise ModelError(
                "model: expected weights that stay as they are while a scene is mapped, got others afterwards; the memory "
                "is damaged or the network changes itself: load the weights again"
            )
        return totals


def _result(
    job: SceneJob,
    scene: OpenScene,
    settings: PredictSettings,
    layers: Sequence[str],
    totals: Totals,
    key: str,
    model: str,
    notes: tuple[str, ...],
) -> SceneResult:
    classes = scene.spec.classes
    klass = scene.spec.klass(settings.klass)
    by_class = totals.class_m2
    return SceneResult(
        name=job.name,
        source=scene.name,
        files={layer: f"{job.name}.{layer}.tif" for layer in layer_names(settings.klass, layers).values()},
        digests={},
        key=key,
        model=model,
        scene=scene.digest,
        classes=classes,
        klass=settings.klass,
        unit=unit_text(scene.spec.unit),
        radiometry=str(scene.scale or "nothing seen"),
        height=scene.source.grid.height,
        width=scene.source.grid.width,
        seen_share=totals.seen / totals.pixels,
        share=totals.class_pixels[klass] / totals.seen if totals.seen else None,
        area_km2=None if by_class is None else by_class[klass] / 1e6,
        expected_km2=_to_km2(totals.expected_m2),
        doubt_km2=_to_km2(totals.doubt_m2),
        low_km2=_to_km2(totals.low_m2),
        high_km2=_to_km2(totals.high_m2),
        unsure_km2=_to_km2(totals.unsure_m2),
        unsure_share=totals.unsure / totals.seen if totals.seen else None,
        class_km2={name: None if by_class is None else by_class[k] / 1e6 for k, name in enumerate(classes)},
        flags=(*scene.flags, *notes),
    )


def _to_km2(area_m2: float | None) -> float | None:
    return None if area_m2 is None else area_m2 / 1e6


STRIP_ROWS = 512
"""Rows per window of the buffer, and the block size of the products."""
MIB = 2**20


def fill_buffer(
    model: nn.Module,
    scene: OpenScene,
    buffer: OutputBuffer,
    reported: ReportedClass,
    settings: PredictSettings,
    plan: TilePlan,
    device: str,
    progress: Callable[[int, int], None],
    guard: WeightGuard | None = None,
) -> Totals:
    """Predict the windows that the buffer lacks; return the totals over the scene.

    A guard compares the weights every few tiles, and before a window is kept: bits that flipped stay flipped, so what
    passes was made with the weights as they were.
    """
    grid, classes = scene.source.grid, len(scene.spec.classes)
    channels = classes + ("mutual-information" in buffer.layers)
    areas = grid.row_areas_m2()
    counted = {window: Totals.of(facts) for window, facts in buffer.open().items()}
    layout = column_panels(plan, len(scene.bands), channels, scene.chunk, settings.memory_mib * MIB)
    todo = [(rows, cols) for cols in layout for rows in _missing_rows(grid.height, cols, counted)]
    total = sum(len(plan.rows.touching(*rows)) * len(plan.cols.touching(*cols)) for rows, cols in todo)
    done = 0

    def tick(tiles: int) -> None:
        nonlocal done
        if (
            guard is not None
            and done // settings.tiles_between_checks < (done + tiles) // settings.tiles_between_checks
        ):
            guard.verify()
        done += tiles
        progress(done, total)

    batch = settings.batch or (1 if find_device(device).type == "cpu" or settings.runtime != "torch" else 8)
    with open_runtime(model, settings.runtime, device=device, disagreement=channels > classes) as predict:
        run_batch = _OutOfMemoryRetry(predict, batch)
        for rows, cols in todo:
            for strip in blend_tiles(
                plan,
                scene.fetch,
                run_batch,
                channels,
                rows,
                cols,
                chunk=scene.chunk,
                step=STRIP_ROWS,
                batch=batch,
                tick=tick,
            ):
                if guard is not None:
                    guard.verify()
                height, width = strip.seen.shape
                part = count_strip(
                    strip, classes, reported, None if areas is None else areas[strip.row : strip.row + height]
                )
                window = (strip.row, strip.col, height, width)
                buffer.write(window, encode_layers(strip, classes, reported, buffer.layers), part.plain())
                counted[window] = part
    return reduce(add, [counted[window] for cols in layout for window in _windows(grid.height, cols)])


class _OutOfMemoryRetry:
    """Runs the network; after an out-of-memory error, once more with half the batch."""

    def __init__(self, predict: Predict, batch: int) -> None:
        self._predict, self._batch, self._halved = predict, batch, False

    def __call__(self, images: FloatArray) -> FloatArray:
        try:
            made = [self._predict(images[i : i + self._batch]) for i in range(0, len(images), self._batch)]
        except (MemoryError, RuntimeError) as bad:
            if not is_out_of_memory(bad):
                raise
            made = []
        if not made:
            return self._again(images)
        whole = made[0] if len(made) == 1 else np.concatenate(made)
        if not np.isfinite(whole.sum()):
            raise ModelError(
                f"model: expected finite probabilities, got NaN for data between {images.min():.4g} and {images.max():.4g}; "
                "the weights are damaged or the data is out of range"
            )
        return whole

    def _again(self, images: FloatArray) -> FloatArray:
        if self._halved or self._batch == 1:
            raise RunError(
                f"tile: expected a batch of {self._batch} tiles of {images.shape[-2]}x{images.shape[-1]} pixels to fit into "
                "memory, got out of memory; use a smaller --tile or --batch (what is finished is kept)"
            )
        self._batch, self._halved = self._batch // 2, True
        return self(images)


def column_panels(plan: TilePlan, bands: int, channels: int, chunk: int, room: int) -> tuple[tuple[int, int], ...]:
    """Cut the columns of a scene so that the rows in memory take about `room` bytes; one tile is the least.

    Example:
        >>> column_panels(TilePlan.of(10980, 10980), 6, 2, 512, 512 * 2**20)
        ((0, 10980),)
        >>> len(column_panels(TilePlan.of(10980, 200000), 6, 2, 512, 512 * 2**20))
        14
    """
    width, tile = plan.cols.size, plan.rows.length
    column = (tile + chunk) * (4 * bands + 1) + (tile + STRIP_ROWS) * (4 * channels + 1)
    most = max(room // column - 2 * plan.cols.length, plan.cols.length, STRIP_ROWS)
    even = -(-width // -(-width // most))  # a narrow last panel would predict its tiles for a few columns
    wide = max(-(-even // STRIP_ROWS) * STRIP_ROWS, STRIP_ROWS)
    return tuple((left, min(left + wide, width)) for left in range(0, width, wide))


def _windows(height: int, cols: tuple[int, int]) -> list[Window]:
    return [(row, cols[0], min(STRIP_ROWS, height - row), cols[1] - cols[0]) for row in range(0, height, STRIP_ROWS)]


def _missing_rows(height: int, cols: tuple[int, int], done: Mapping[Window, Totals]) -> list[tuple[int, int]]:
    """Return the runs of rows of a panel that the buffer lacks."""
    runs: list[tuple[int, int]] = []
    for window in _windows(height, cols):
        if window in done:
            continue
        first, end = window[0], window[0] + window[2]
        if runs and runs[-1][1] == first:
            runs[-1] = (runs[-1][0], end)
        else:
            runs.append((first, end))
    return runs

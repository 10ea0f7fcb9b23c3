"""Tiny chips and scenes, whole and broken ones, and a model for them."""

import struct
import zlib
from pathlib import Path

import numpy as np
import rasterio
import torch
from affine import Affine
from torch import nn

from seawall.types import ModelSpec, Unit

BANDS = ("B03", "B08")
SIZE = 32
SPEC = ModelSpec(BANDS, ("land", "water"), "reflectance", 10.0)
SMALL = ("model.name=unet", "model.settings.width=4", "model.settings.depth=2", "training.settings.epochs=1", "training.settings.steps_per_epoch=2",
         "training.settings.patch=32", "training.settings.batch=2")  # fmt: skip
SMALL_TRAINING = tuple(word for change in SMALL for word in ("--set", change))


class PixelModel(nn.Module):
    """Water where the first band outshines the last, each pixel alone; it counts its calls."""

    reach: int = 0
    stride: int | None = 1

    def __init__(
        self,
        *bands: str,
        classes: tuple[str, ...] = ("land", "water"),
        unit: Unit = "reflectance",
        gain: float = 20.0,
    ) -> None:
        super().__init__()
        self.spec = ModelSpec(bands or BANDS, classes, unit, 10.0)
        self.gain = nn.Parameter(torch.tensor(gain))
        self.calls = 0

    def identity(self) -> dict[str, object]:
        return {"spec": self.spec}  # the number of calls decides nothing

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        z = self.gain * (image[:, :1] - image[:, -1:])
        return torch.cat([-z, z], 1)


def numbers(seed: int = 0, size: int = SIZE) -> np.ndarray:
    """Digital numbers of land above and water below."""
    data = np.random.default_rng(seed).integers(1500, 4000, (2, size, size))
    data[1, size // 2 :] //= 10
    return data


def marks() -> np.ndarray:
    label = np.zeros((1, SIZE, SIZE), np.uint8)
    label[:, SIZE // 2 :] = 1
    return label


def save(path: Path, data: np.ndarray, *, dtype: str = "uint16", bands: tuple[str, ...] = (), tags: dict[str, str] | None = None,
         at: Affine = Affine(10, 0, 500000, 0, -10, 4000000), **more: object) -> Path:  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = data.shape
    profile = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": dtype}
    profile |= {"crs": "EPSG:32631", "transform": at, "nodata": 0 if dtype == "uint16" else None}
    with rasterio.open(path, "w", **(profile | more)) as sink:
        if bands:
            sink.descriptions = bands
        sink.update_tags(**(tags or {}))
        sink.write(data.astype(dtype))
    return path


def scene(path: Path, seed: int = 0, **more: object) -> Path:
    return save(path, numbers(seed), **({"bands": BANDS} | more))  # type: ignore[arg-type]


def at(place: int) -> Affine:
    """Where a chip is: places don't overlap, so that they can be split."""
    return Affine(10, 0, 500000 + 1000 * place, 0, -10, 4000000)


def pair(root: Path, group: str, name: str, *, data: np.ndarray | None = None, label: np.ndarray | None = None, seed: int = 0,
         image_kw: dict[str, object] | None = None, label_kw: dict[str, object] | None = None) -> None:  # fmt: skip
    image, label = numbers(seed) if data is None else data, marks() if label is None else label
    save(root / f"images/{group}/{name}.tif", image, **({"bands": BANDS, "at": at(seed)} | (image_kw or {})))  # type: ignore[arg-type]
    save(root / f"labels/{group}/{name}.tif", label, **({"dtype": "uint8", "at": at(seed)} | (label_kw or {})))  # type: ignore[arg-type]


def cut_off(path: Path, share: float = 0.6) -> None:
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * share)])


def sparse(path: Path) -> Path:
    """Blocks that were never written and no nodata: they would read as zeros."""
    more = {"tiled": True, "blockxsize": 16, "blockysize": 16, "sparse_ok": True, "nodata": None}
    return save(path, np.zeros((2, SIZE, SIZE)), bands=BANDS, **more)  # type: ignore[arg-type]


def killed_writer(path: Path) -> Path:
    """A raster that says who wrote it and not that it was finished."""
    return scene(path, tags={"SEAWALL_WRITER": "seawall"})


def oversized(path: Path) -> Path:
    """A few hundred bytes that declare 60000 x 60000 pixels."""
    payload = zlib.compress(b"\0" * 1000)
    fields = {256: 60000, 257: 60000, 258: 8, 259: 8, 262: 1, 273: 8, 277: 1, 278: 60000, 279: len(payload)}
    raw = b"II*\0" + struct.pack("<I", 8 + len(payload)) + payload + struct.pack("<H", len(fields))
    raw += b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in fields.items()) + struct.pack("<I", 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(raw)
    return path


def broken_rasters(folder: Path) -> dict[str, str]:
    """Write one broken raster of each sort; return what is said of it."""
    scene(folder / "empty.tif").write_bytes(b"")
    cut_off(scene(folder / "truncated.tif"))
    (folder / "page.tif").write_text("<!doctype html><p>404")
    sparse(folder / "sparse.tif")
    killed_writer(folder / "killed.tif")
    oversized(folder / "oversized.tif")
    return {
        "empty": "got 0 bytes", "truncated": "ends inside block", "page": "HTML page", "sparse": "absent",
        "killed": "killed writer", "oversized": "at most 2147483648 pixels",
    }  # fmt: skip

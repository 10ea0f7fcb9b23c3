"""Whole scenes: seconds and peak memory of seawall against reading everything and tiling it, with the same network.

    python benchmarks/scene.py --size 4096
    python benchmarks/scene.py --size 10980 --ways seawall
    python benchmarks/scene.py --size 4096 --ways seawall ensemble      # three networks: time over passes, memory beside one

Each way runs in a process of its own; memory is the peak resident set that the kernel counted for it. The naive way
is what a notebook does: read all bands as float32, pad, cut tiles, sum weighted probabilities and weights over the
whole scene, divide, write three GeoTIFFs. Both use the same tiles, overlap, batch and threads.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BANDS = ("B02", "B03", "B04", "B08", "B11", "B12")
ENSEMBLE = 3
"""Networks of the ensemble."""


def make_scene(path: Path, size: int) -> None:
    """Write a scene of water and land with texture and a corner without data, row band by row band."""
    import numpy as np
    import rasterio
    from rasterio.windows import Window

    land, water = (800, 1000, 1100, 2800, 2400, 1600), (600, 700, 500, 300, 150, 100)
    profile = {"driver": "GTiff", "height": size, "width": size, "count": len(BANDS), "dtype": "uint16", "nodata": 0}
    profile |= {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate", "zlevel": 1}
    profile |= {
        "crs": "EPSG:32633",
        "transform": rasterio.Affine(10, 0, 500000, 0, -10, 5000000),
        "bigtiff": "IF_SAFER",
    }
    x = np.arange(size, dtype=np.float32)
    with rasterio.Env(GDAL_CACHEMAX=64 * 2**20), rasterio.open(path, "w", **profile) as sink:
        sink.descriptions = BANDS
        for row in range(0, size, 512):
            y = np.arange(row, min(row + 512, size), dtype=np.float32)[:, None]
            wet = np.sin(x / 190 + 2 * np.sin(y / 330)) + np.sin(y / 270 + np.cos(x / 410)) > 0.9
            rng = np.random.default_rng(row)
            for b in range(len(BANDS)):
                pixels = np.where(wet, water[b], land[b]) + rng.normal(0, 60, wet.shape)
                pixels = pixels.clip(1, 10000).astype(np.uint16)
                pixels[x[None] + y < size * 0.3] = 0
                sink.write(pixels, b + 1, window=Window(0, row, size, len(y)))


def make_model(width: int, depth: int, seed: int = 0):
    """Build the small U-Net that both ways run."""
    import torch

    from seawall.models.unet import UNet
    from seawall.types import ModelSpec

    torch.manual_seed(seed)
    model = UNet(width=width, depth=depth)(ModelSpec(BANDS, ("land", "water"), "reflectance", 10.0, "unet"))
    model.standardize.fit([0.1] * len(BANDS), [0.1] * len(BANDS))
    return model.eval()


def run_seawall(scene: Path, out: Path, args: argparse.Namespace) -> None:
    """Map the scene in a stream."""
    from seawall.inference.predict import predict_scene

    model = make_model(args.width, args.depth)
    predict_scene(model, scene, out, tile=args.tile, overlap=args.overlap, batch=args.batch, device=args.device)


def run_naive(scene: Path, out: Path, args: argparse.Namespace) -> None:
    """Read all, tile all, write all."""
    import numpy as np
    import rasterio
    import torch

    from seawall.inference.tiling import plan_tiles

    model = make_model(args.width, args.depth)
    with rasterio.open(scene) as source:
        profile = source.profile
        data = source.read().astype(np.float32)
    seen = (data != 0).all(0)
    data = np.where(seen, data / 10000, 0).astype(np.float32)
    plan, _ = plan_tiles(model, *seen.shape, args.tile, args.overlap)
    total = np.zeros((2, *seen.shape), np.float32)
    weight = np.zeros(seen.shape, np.float32)
    jobs = [(k, j) for k in range(len(plan.rows.starts)) for j in range(len(plan.cols.starts))]
    for at in range(0, len(jobs), max(args.batch, 1)):
        some = jobs[at : at + max(args.batch, 1)]
        tiles = np.stack([data[:, plan.rows.take(k)][:, :, plan.cols.take(j)] for k, j in some])
        with torch.inference_mode():
            made = torch.softmax(model(torch.from_numpy(tiles)), 1).numpy()
        for (k, j), probability in zip(some, made, strict=True):
            (top, bottom), (left, right) = plan.rows.support(k), plan.cols.support(j)
            y, x = top - plan.rows.starts[k], left - plan.cols.starts[j]
            w = plan.rows.weights(k)[:, None] * plan.cols.weights(j)
            total[:, top:bottom, left:right] += probability[:, y : y + bottom - top, x : x + right - left] * w
            weight[top:bottom, left:right] += w
    total /= weight
    entropy = -(total * np.log(np.maximum(total, 1e-12))).sum(0) / np.log(2)
    layers = {"class": total.argmax(0), "water": np.rint(total[1] * 250), "uncertainty": np.rint(entropy * 250)}
    out.mkdir(parents=True, exist_ok=True)
    profile |= {"count": 1, "dtype": "uint8", "nodata": 255}
    for name, layer in layers.items():
        with rasterio.open(out / f"naive.{name}.tif", "w", **profile) as sink:
            sink.write(np.where(seen, layer, 255).astype(np.uint8), 1)


def run_ensemble(scene: Path, out: Path, args: argparse.Namespace) -> None:
    """Map the scene in a stream by three networks, with their disagreement and what cannot be told."""
    from seawall.inference.predict import predict_scene
    from seawall.uncertainty.ensemble import mean_of_networks

    networks = [make_model(args.width, args.depth, seed) for seed in range(ENSEMBLE)]
    model = mean_of_networks(networks[0], networks[1:])
    predict_scene(model, scene, out, tile=args.tile, overlap=args.overlap, batch=args.batch, device=args.device)


WAYS = {"seawall": run_seawall, "naive": run_naive, "ensemble": run_ensemble}


def measure(way: str, scene: Path, out: Path, args: argparse.Namespace) -> dict[str, float | str]:
    """Run one way in a process of its own."""
    command = [sys.executable, __file__, "--inside", way, "--scene", str(scene), "--out", str(out)]
    for name in ("tile", "overlap", "batch", "threads", "width", "depth", "device"):
        command += [] if getattr(args, name) is None else [f"--{name}", str(getattr(args, name))]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return {"way": way, **json.loads(done.stdout.splitlines()[-1])}


def inside(args: argparse.Namespace) -> None:
    """Be that process: run, then print what it took."""
    import torch

    import seawall.models.unet  # noqa: F401  (imports are not what is measured)

    torch.set_num_threads(args.threads)
    begin, begin_cpu = time.monotonic(), time.process_time()
    WAYS[args.inside](args.scene, args.out, args)
    seconds, cpu = time.monotonic() - begin, time.process_time() - begin_cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(json.dumps({"seconds": round(seconds, 2), "cpu_s": round(cpu, 2), "peak_mib": round(peak / 2**20)}))


def main() -> None:
    """Make the scene, run the ways one after the other, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=4096, help="pixels of the scene's side")
    parser.add_argument("--ways", nargs="+", default=["seawall", "naive"], choices=list(WAYS))
    parser.add_argument("--tile", type=int, help="as `predict` chooses it by default")
    parser.add_argument("--overlap", type=int, help="as `predict` chooses it by default")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--depth", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--inside", choices=list(WAYS), help=argparse.SUPPRESS)
    parser.add_argument("--scene", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        inside(args)
        return
    with tempfile.TemporaryDirectory(prefix="seawall-bench-") as folder:
        scene = Path(folder) / "scene.tif"
        make_scene(scene, args.size)
        print(
            f"{args.size}x{args.size}x{len(BANDS)} uint16, {scene.stat().st_size / 2**20:.0f} MiB on disk", flush=True
        )
        rows = []
        for way in args.ways:
            rows.append(measure(way, scene, Path(folder) / way, args))
            print("{way:<8} {seconds:>8.1f} s  {cpu_s:>8.1f} CPU-s  {peak_mib:>6} MiB".format(**rows[-1]), flush=True)
        if len(rows) == 2:
            ratio = {key: float(rows[0][key]) / float(rows[1][key]) for key in ("cpu_s", "peak_mib")}
            print(
                f"{rows[0]['way']} / {rows[1]['way']}: {ratio['cpu_s']:.2f} of the CPU time, {ratio['peak_mib']:.2f} of the memory"
            )


if __name__ == "__main__":
    main()

"""Inference time of FCN, U-Net and DeepLabV3+, and what it depends on: encoder, width, size of the image, way to run.

The lecture says that DeepLabV3+ takes longer than U-Net, and U-Net longer than FCN. Untrained networks have the time of trained
ones, so nothing is trained here. Three settings: this project's defaults, one encoder for all (VGG-16 of the same width), and the
published widths. All networks of a setting take turns, and the median of the rounds counts.

    python benchmarks/inference_time.py [--sizes 256,1024] [--repeats 5] [--threads 1]

Prints a table in Markdown: seconds per megapixel, and the ratio to U-Net's in the same column.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import nn

from seawall import registry
from seawall.inference.cost import ModelCost, measure_costs
from seawall.models.weights import spec_of
from seawall.records import WAYS
from seawall.types import ModelSpec, Setting

SPEC = ModelSpec(("B02", "B03", "B04", "B08", "B11", "B12"), ("land", "water"), "reflectance", 10.0)
UNET = "U-Net"

Networks = Mapping[str, tuple[str, Mapping[str, Setting]]]

SETTINGS: Mapping[str, Networks] = {
    "defaults": {
        "FCN-8s": ("fcn-8s", {}),
        UNET: ("unet", {}),
        "DeepLabV3+": ("deeplabv3+", {}),
    },
    "VGG-16 of width 32": {
        "FCN-8s": ("fcn-8s", {"width": 32}),
        UNET: ("unet", {"encoder": "vgg16", "width": 32}),
        "DeepLabV3+": ("deeplabv3+", {"encoder": "vgg16", "width": 32}),
    },
    "published": {
        "FCN-8s": ("fcn-8s", {"width": 64, "fc": 4096, "norm": "none"}),
        UNET: ("unet", {"width": 64, "depth": 4, "norm": "none"}),
        "DeepLabV3+": ("deeplabv3+", {"encoder": "resnet50"}),
    },
}


def networks(wanted: Networks) -> dict[str, nn.Module]:
    """Return the untrained networks, with a normalization."""
    made: dict[str, nn.Module] = {}
    for called, (name, settings) in wanted.items():
        torch.manual_seed(0)
        model: nn.Module = registry.build("model", name, settings)(SPEC)  # type: ignore[operator]
        model.get_submodule("standardize").fit([0.2] * len(spec_of(model).bands), [0.1] * len(SPEC.bands))  # type: ignore[operator]
        made[called] = model.eval()
    return made


def rows(setting: str, size: int, costs: Mapping[str, ModelCost], ways: Sequence[str]) -> Iterator[str]:
    """Yield the lines of one setting and size."""
    for called, cost in costs.items():
        shown = []
        for way in ways:
            seconds, unit = cost.seconds.get(way), costs[UNET].seconds.get(way)
            shown.append(f"{seconds:.3g} ({seconds / unit:.2f})" if seconds and unit else "-")
        size_text = f"{cost.parameters / 1e6:.3g} M | {(cost.macs_per_pixel or 0) / 1000:.0f}"
        yield f"| {setting} | {size} | {called} | {size_text} | {' | '.join(shown)} |"


def main() -> None:
    """Measure and print."""
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--sizes", type=lambda text: [int(s) for s in text.split(",")], default=[256, 1024])
    ask.add_argument("--repeats", type=int, default=5)
    ask.add_argument("--threads", type=int, default=1)
    given = ask.parse_args()
    torch.set_num_threads(given.threads)
    ways = list(WAYS)
    print(f"| setting | side | network | parameters | kMAC per pixel | {' | '.join(WAYS[way] for way in ways)} |")
    print("|" + "---|" * (5 + len(ways)))
    for setting, wanted in SETTINGS.items():
        made = networks(wanted)
        for size in given.sizes:
            costs = measure_costs(made, ways, size=size, repeats=given.repeats)
            print("\n".join(rows(setting, size, costs, ways)), flush=True)


if __name__ == "__main__":
    main()

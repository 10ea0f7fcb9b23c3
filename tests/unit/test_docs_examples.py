"""Python on the pages of the documentation runs: each page from top to bottom, in a folder with what the reader has."""

import importlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from seawall import registry
from seawall.geo.raster import Grid, write_cog
from seawall.models.water_index import WaterIndexThreshold
from seawall.models.weights import save_model
from seawall.testing.contract import checks
from seawall.types import Batch, ModelSpec

ROOT = Path(__file__).parents[2]
_SPEC = importlib.util.spec_from_file_location("docs_build", ROOT / "docs/build.py")
assert _SPEC and _SPEC.loader
build = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(build)
PAGES = [
    page for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))) if "```python" in page.read_text()
]
SPEC = ModelSpec(("B03", "B08"), ("land", "water"), "reflectance", 10.0)


def blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S)


class Reader(nn.Module):
    """What a page calls `model`: the reader's own network."""

    def __init__(self) -> None:
        super().__init__()
        self.spec = SPEC
        torch.manual_seed(0)
        self.body = nn.Conv2d(2, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return logits."""
        logits: torch.Tensor = self.head(torch.relu(self.body(image)))
        return logits


def given() -> dict[str, object]:
    """The names that pages use without making them."""
    draw = torch.Generator().manual_seed(0)
    image = 0.3 * torch.rand(21, 2, 16, 16, generator=draw)
    batch = Batch.of(image, (image[:, 0] > image[:, 1]).long())
    region = torch.zeros(1, 16, 16, dtype=torch.bool)
    region[:, 4:8, 4:8] = True

    spread = torch.randn(20, 2, 16, 16, generator=draw) * torch.linspace(0.1, 4, 20)[:, None, None, None]
    held_out = Batch.of(spread, (spread[:, 0] > spread[:, 1]).long())

    def learn(part: Batch, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return Reader()

    return {
        "model": Reader(), "spec": SPEC, "batch": batch.select([0]), "train": batch.select(range(1, 21)), "scene": batch.select([0]),
        "held_out": [held_out], "region": region, "learn": learn,
    }  # fmt: skip


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the files that pages name."""
    monkeypatch.chdir(tmp_path)
    save_model("model.safetensors", WaterIndexThreshold("ndwi")(SPEC))
    numbers = np.random.default_rng(0).integers(200, 4000, (2, 64, 64)).astype(np.uint16)
    write_cog(tmp_path / "S2A_T33UUU.tif", numbers, Grid(64, 64), bands=SPEC.bands, nodata=0)
    return tmp_path


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "add-a-method.md"], ids=lambda page: page.name)
def test_python_on_a_page_runs(page: Path, desk: Path) -> None:
    names = given()
    for number, block in enumerate(blocks(page), 1):
        exec(compile(block, f"{page.name}, block {number}", "exec"), names)


def dropped_in() -> list[tuple[str, str]]:
    """Return the path and the text of every file of the page."""
    page = (ROOT / "docs/add-a-method.md").read_text(encoding="utf-8")
    return re.findall(r"`src/(seawall/\S+)\.py`:\n\n```python\n(.*?)```", page, re.S)


@pytest.mark.parametrize(("place", "text"), dropped_in(), ids=lambda value: value if "/" in value[:40] else "")
def test_a_method_of_the_page_works_by_being_dropped_in(
    place: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = place.replace("/", ".")
    home, _, name = module.rpartition(".")
    (kind,) = re.findall(r'@register\("([a-z-]+)", "mine"', text)
    assert home in registry.HOMES[kind], f"a {kind} is not looked for in {home}"
    for each in registry.HOMES:  # what is imported for the first time below would register in the copy alone
        assert list(registry.entries(each))
    (tmp_path / f"{name}.py").write_text(text)
    package = importlib.import_module(home)
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    monkeypatch.setattr(registry, "_loaded", set(registry._loaded) - {home})
    try:
        entry = registry.find(kind, "mine")
        assert entry.summary.endswith(".")
        assert f"`{entry.name}`" in build.methods_page()
        for check in checks(kind):
            check(entry)
    finally:
        sys.modules.pop(module, None)
        importlib.invalidate_caches()


@pytest.mark.parametrize(("place", "text"), dropped_in(), ids=lambda value: value if "/" in value[:40] else "")
def test_a_file_of_the_page_passes_the_linter(place: str, text: str) -> None:
    for words in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *words, "--stdin-filename", str(ROOT / f"src/{place}.py"), "-"],
            input=text, capture_output=True, text=True, check=False, cwd=ROOT,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_kind_has_a_file_on_the_page() -> None:
    kinds = {kind for _, text in dropped_in() for kind in re.findall(r'@register\("([a-z-]+)", "mine"', text)}
    assert kinds == set(registry.HOMES)


def test_the_test_of_a_package_of_ones_own_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    own_test = blocks(ROOT / "docs/add-a-method.md")[-1].replace('"mine"', '"fgsm"')
    space = SimpleNamespace()
    exec(compile(own_test, "add-a-method.md", "exec"), vars(space))
    space.test_mine()

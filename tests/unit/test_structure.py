"""The source tree keeps its rules: one name means one thing, and one rule has one home."""

import ast
import importlib
import re
from collections import defaultdict
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src/seawall"
FILES = sorted(SOURCE.rglob("*.py"))
MOST_LINES = 500
CHECK = re.compile("check_|CHECKS$")


def defined(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign):
            yield from (name.id for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id


def places(files: list[Path]) -> dict[str, list[str]]:
    """Return the files in which each top-level name is defined."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in files:
        for name in dict.fromkeys(defined(ast.parse(path.read_text(encoding="utf-8")))):
            if not (name.startswith("__") and name.endswith("__")) or name == "__version__":
                found[name].append(str(path.relative_to(SOURCE) if path.is_relative_to(SOURCE) else path.name))
    return found


def test_no_top_level_name_is_defined_twice() -> None:
    twice = {name: where for name, where in places(FILES).items() if len(where) > 1}
    twice = {  # a check is named within the kind that it is of: seawall.testing has one module per kind
        name: where
        for name, where in twice.items()
        if not all(w.startswith("testing/") for w in where) or not CHECK.match(name)
    }
    assert not twice, "\n".join(f"{name}: {', '.join(where)}" for name, where in sorted(twice.items()))


def test_a_name_that_is_defined_twice_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("ONE = 1\ndef area() -> int: ...\n")
    (tmp_path / "b.py").write_text("class Area: ...\ndef area() -> float: ...\n")
    assert places([tmp_path / "a.py", tmp_path / "b.py"])["area"] == ["a.py", "b.py"]


@pytest.mark.parametrize(
    ("rule", "pattern", "homes"),
    [
        ("evaluation mode and back", r"\bmodule\.training = |\bm\.training = ", {"modules.py"}),
        ("Otsu's between-class variance", r"def best_split", {"labels/threshold.py"}),
        ("a table of water indices", r'"water-index", "mndwi"', {"labels/water_indices.py"}),
        ("splitting a folder", r"def split_chips", {"data/splits.py"}),
        ("a file's SHA-256", r'file_digest\(file, "sha256"|sha256\(\w+\.read_bytes', {"io.py"}),
        ("the class that figures are of", r"else (self\.|\w+\.)?classes\[-1\]", {"class_names.py"}),
        ("the text of a threat", r"def parse_threat", {"threat/parser.py"}),
    ],
)
def test_a_rule_has_one_home(rule: str, pattern: str, homes: set[str]) -> None:
    found = {str(p.relative_to(SOURCE)) for p in FILES if re.search(pattern, p.read_text(encoding="utf-8"))}
    assert found == homes, f"{rule}: {sorted(found)}"


def test_files_can_be_read_in_one_go() -> None:
    lines = {str(p.relative_to(SOURCE)): len(p.read_text(encoding="utf-8").splitlines()) for p in FILES}
    lines.pop("api.py")  # the reference of the verbs, one docstring each
    assert not {name: count for name, count in lines.items() if count > MOST_LINES}


@pytest.mark.parametrize("script", sorted((SOURCE.parents[1] / "benchmarks").glob("*.py")), ids=lambda path: path.stem)
def test_what_a_benchmark_imports_is_there(script: Path) -> None:
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("seawall"):
            module = importlib.import_module(str(node.module))
            lost = [
                a.name for a in node.names if not hasattr(module, a.name) and not find_spec(f"{node.module}.{a.name}")
            ]
            assert not lost, f"{node.module} has no {', '.join(lost)}"

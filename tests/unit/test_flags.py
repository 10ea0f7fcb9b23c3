"""Flags: one registry, which every writer, the docs and the page agree with."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import seawall
from seawall.report.flags import FLAGS_BY_ID, explain, find_flag, warning_flags

SOURCE = Path(seawall.__file__).parent
DOCS = Path(__file__).parents[2] / "docs"


def text_of(node: ast.AST) -> str | None:
    """Return a literal's text, with 1 for everything that is filled in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "1" for part in node.values)
    return None


def literals(node: ast.AST) -> Iterator[ast.AST]:
    """Yield strings and names within an expression; the parts of a formatted string count as one."""
    if text_of(node) is not None or isinstance(node, ast.Name):
        yield node
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        yield node
    for child in [] if isinstance(node, ast.JoinedStr) else ast.iter_child_nodes(node):
        yield from literals(child)


class Module:
    """A file of the package: what it writes as a flag, and every string in it."""

    def __init__(self, path: Path, constants: dict[str, str]) -> None:
        self.tree = ast.parse(path.read_text(encoding="utf-8"))
        self.constants = constants
        self.functions = {n.name: n for n in ast.walk(self.tree) if isinstance(n, ast.FunctionDef)}

    def written(self) -> set[str]:
        """Return what is put into anything that is called flags."""
        found: set[str] = set()
        for node in ast.walk(self.tree):
            for part in self._flag_parts(node):
                for one in literals(part):
                    found |= self._resolved(one)
        return {text for text in found if sum(map(str.isalpha, text)) > 3 and text != "flags"}

    def _flag_parts(self, node: ast.AST) -> list[ast.AST]:
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in ("append", "extend", "add")
        ):
            return list(node.args) if isinstance(node.func.value, ast.Name) and node.func.value.id == "flags" else []
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Finding":
            return node.args[:1]  # the id of what was found in the pixels; its text follows after a colon
        if isinstance(node, ast.keyword) and node.arg == "flags":
            return [node.value]
        if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign) and node.value is not None:
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            pairs = (
                zip(target.elts, node.value.elts, strict=False)
                if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple)
                else [(target, node.value)]
            )
            return [value for name, value in pairs if isinstance(name, ast.Name) and name.id == "flags"]
        if isinstance(node, ast.For) and any(isinstance(n, ast.Name) and n.id == "flag" for n in ast.walk(node.target)):
            return [node.iter]
        if isinstance(node, ast.FunctionDef) and "flags" in node.name and "pytest" not in node.name:
            adds = [
                n
                for n in ast.walk(node)
                if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute) and n.func.attr == "append"
            ]
            return [*adds, *(n for n in ast.walk(node) if isinstance(n, ast.Return))]
        return []

    def _resolved(self, node: ast.AST) -> set[str]:
        if isinstance(node, ast.Name):
            return {self.constants[node.id]} if node.id in self.constants else set()
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            called = self.functions.get(node.func.id)
            returned = [n.value for n in ast.walk(called) if isinstance(n, ast.Return) and n.value] if called else []
            lists = [n for value in returned for n in ast.walk(value) if isinstance(n, ast.List)]
            return {text for one in lists for n in one.elts if (text := text_of(n)) is not None}
        return {text_of(node) or ""}


@pytest.fixture(scope="module")
def modules() -> dict[str, Module]:
    paths = [p for p in sorted(SOURCE.rglob("*.py")) if p.parent.name != "report"]
    constants: dict[str, str] = {}
    for path in paths:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and (text := text_of(node.value)):
                constants[node.targets[0].id] = text
    return {str(path.relative_to(SOURCE)): Module(path, constants) for path in paths}


def test_every_flag_that_code_writes_is_registered(modules: dict[str, Module]) -> None:
    written = {(name, text) for name, module in modules.items() for text in module.written()}
    unknown = {(name, text) for name, text in written if find_flag(text) is None}
    assert not unknown
    known = {flag.id for _, text in written if (flag := find_flag(text))}
    assert {
        "zero-gradient",
        "non-finite-logits",
        "acquisition-time-unknown",
        "pixel-size",
    } <= known


def test_every_registered_flag_is_written_by_some_code(modules: dict[str, Module]) -> None:
    texts = {text for module in modules.values() for node in ast.walk(module.tree) if (text := text_of(node))}
    unwritten = {flag.id for flag in FLAGS_BY_ID.values() if not any(flag.matches(text) for text in texts)}
    assert not unwritten


def test_the_docs_have_one_section_per_flag_in_the_order_of_the_alphabet() -> None:
    page = (DOCS / "flags.md").read_text(encoding="utf-8")
    sections = re.findall(r"^## ([a-z0-9-]+)$", page, re.MULTILINE)
    assert sections == sorted(FLAGS_BY_ID)
    for part in page.split("\n## ")[1:]:
        name, weight = part.split("\n")[0], FLAGS_BY_ID[part.split("\n")[0]].weight
        assert ("A note" in part) == (weight == "note"), name
        assert all(word in part for word in ("**Seen.**", "**Why it matters.**", "**What to do.**")), name


def test_no_two_flags_fit_one_text(modules: dict[str, Module]) -> None:
    for module in modules.values():
        for text in module.written():
            assert sum(flag.matches(text) for flag in FLAGS_BY_ID.values()) == 1, text


@pytest.mark.parametrize(
    ("text", "id_", "weight"),
    [
        ("zero-gradient", "zero-gradient", "warning"),
        ("partial suite: 3 of 60 missing", "partial-suite", "warning"),
        ("non-finite logits", "non-finite-logits", "warning"),
        ("the acquisition time is unknown", "acquisition-time-unknown", "note"),
        ("pixel-size: pixels of 30 m, but the model was trained on 10 m", "pixel-size", "warning"),
        ("3 features skipped: no area", "features-skipped", "note"),
    ],
)
def test_a_text_is_recognized_with_its_weight(text: str, id_: str, weight: str) -> None:
    assert (explain(text).id, explain(text).weight) == (id_, weight)
    assert warning_flags((text,)) == ((text,) if weight == "warning" else ())


def test_a_note_does_not_forbid_to_quote() -> None:
    assert not [flag.id for flag in FLAGS_BY_ID.values() if flag.weight == "note" and "quote" in flag.do.lower()]


@pytest.mark.parametrize("flag", ["more_steps", "<script>", "", "öä"])
def test_an_unknown_flag_has_an_id_that_a_link_can_name(flag: str) -> None:
    assert find_flag(flag) is None
    assert explain(flag).id.replace("-", "").isalnum() and "quote" not in explain(flag).do

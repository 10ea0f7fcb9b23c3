"""Write the generated pages of the documentation, or check that they and every promise in the docs still hold.

python docs/build.py          writes docs/reference/*.md
python docs/build.py --check  fails when a page is stale, a link is dead, a command does not parse, a recipe does not read
"""

from __future__ import annotations

import re
import shlex
import sys
import tomllib
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path

from typer.main import get_command

from seawall import registry
from seawall.cli import app
from seawall.recipe.recipe import make_recipe, read_recipe

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"


def main() -> int:
    pages = {
        "reference/methods.md": methods_page(),
        "reference/cli.md": cli_page(),
        "architecture.md": architecture_page(),
    }
    if "--check" not in sys.argv:
        for name, text in pages.items():
            (DOCS / name).write_text(text, encoding="utf-8")
        return 0
    problems = [*stale(pages), *dead_links(), *wrong_commands(), *wrong_recipes()]
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"docs: {len(problems)} problems in {len(prose())} pages")
    return 1 if problems else 0


def methods_page() -> str:
    """One table per kind, one row per method, and its settings below."""
    lines = [
        "# Methods",
        "",
        "Generated from the registry by `docs/build.py`. A file dropped into its folder adds its own row.",
        "",
    ]
    for kind in registry.HOMES:
        found = list(registry.entries(kind))
        if not found:
            continue
        lines += [f"## {kind}", "", "| name | what it does | settings | paper |", "|---|---|---|---|"]
        for entry in found:
            settings = ", ".join(_setting(f) for f in fields(entry.make) if f.init)
            lines.append(f"| `{entry.name}` | {_cell(entry.summary)} | {_cell(settings)} | {_cell(entry.paper)} |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def cli_page() -> str:
    """The help of every command."""
    command = get_command(app)
    lines = ["# Command line", "", "Generated from the code by `docs/build.py`.", ""]
    for name, verb in sorted(getattr(command, "commands", {}).items()):
        options = [p for p in verb.params if p.name != "help"]
        lines += [
            f"## seawall {name}",
            "",
            (verb.help or "").strip(),
            "",
            "| option | meaning | default |",
            "|---|---|---|",
        ]
        for option in options:
            shown = " ".join(f"`{flag}`" for flag in [*option.opts, *option.secondary_opts])
            text = getattr(option, "help", "") or ""
            default = "required" if option.required else _default(option.default)
            lines.append(f"| {shown} | {_cell(text)} | {default} |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def architecture_page() -> str:
    """The page as it is, with the layers of pyproject.toml between its marks."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = project["tool"]["importlinter"]["contracts"][0]["layers"]
    plain = [re.sub(r"seawall\.|[()]", "", layer) for layer in layers]
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    block = "\n".join(["<!-- layers -->", "```", *plain, "```", "<!-- end -->"])
    return re.sub(r"<!-- layers -->.*<!-- end -->", lambda _: block, text, flags=re.S)


def stale(pages: dict[str, str]) -> list[str]:
    out = []
    for name, text in pages.items():
        path = DOCS / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            out.append(f"{path.relative_to(ROOT)}: stale; run python docs/build.py")
    return out


def prose() -> list[Path]:
    return [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]


def dead_links() -> list[str]:
    return [
        f"{page.relative_to(ROOT)}: dead link {target}"
        for page in prose()
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
        if "://" not in target and not (page.parent / target).exists()
    ]


def wrong_commands() -> list[str]:
    """Every `seawall ...` line in a code block, and every example of the help, must parse: verb, options, arguments, types."""
    verbs = getattr(get_command(app), "commands", {})
    lines = [(f"seawall {name} --help", _example(verb.help or "")) for name, verb in verbs.items()]
    for page in prose():
        for block in re.findall(r"```(?:bash|console|sh)\n(.*?)```", page.read_text(encoding="utf-8"), re.S):
            lines += [(str(page.relative_to(ROOT)), line) for line in re.sub(r"\\\n", " ", block).splitlines()]
    out = []
    for where, line in lines:
        words = shlex.split(line.lstrip("$ "), comments=True)
        if len(words) < 2 or not words[0].endswith("seawall") or words[1].startswith("-"):
            continue
        if words[1] not in verbs:
            out.append(f"{where}: no command {words[1]!r}")
            continue
        rest = [word for word in words[2:] if word not in ("--help", "-h", "--debug")]
        try:
            if "--help" not in words and "-h" not in words:
                verbs[words[1]].make_context(words[1], rest)  # parses, and runs nothing
        except Exception as bad:
            out.append(f"{where}: {line.strip()}: {bad}")
    return out


def _example(text: str) -> str:
    return text.split("Example:")[-1].strip()


def wrong_recipes() -> list[str]:
    """Every recipe of the project, and every TOML block in the docs that has a name, must read."""
    out = []
    for path in sorted((ROOT / "recipes").glob("*.toml")):
        try:
            read_recipe(path)
        except Exception as bad:
            out.append(str(bad))
    for page in prose():
        for block in re.findall(r"```toml\n(.*?)```", page.read_text(encoding="utf-8"), re.S):
            tree = tomllib.loads(block)
            try:
                if "name" in tree:
                    make_recipe(tree, page.name)
            except Exception as bad:
                out.append(str(bad))
    return out


def _setting(field: Field[object]) -> str:
    if field.default_factory is not MISSING:
        return f"{field.name} = ..."
    if field.default is MISSING:
        return field.name
    plain = not is_dataclass(field.default) or field.default != type(field.default)()
    return f"{field.name} = {field.default!r}" if plain else f"{field.name} = {type(field.default).__name__}()"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _default(value: object) -> str:
    if value is None or value == () or value == [] or value == "":
        return ""
    return f"`{value}`"


if __name__ == "__main__":
    sys.exit(main())

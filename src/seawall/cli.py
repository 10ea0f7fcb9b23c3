"""The command line: every verb of `seawall.api`, one to one, with its docstring as help."""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from seawall import __version__, api
from seawall.errors import SeawallError
from seawall.result import Result

OPTION_TYPES: dict[str, Any] = {
    "Path": Path, "str": str, "int": int, "float": float, "bool": bool,
    "Path | str": Path, "Path | str | None": Path | None, "str | None": str | None, "int | None": int | None, "float | None": float | None,
    "Sequence[str]": list[str], "Sequence[float]": list[float], "Sequence[int]": list[int], "Sequence[Path]": list[Path],
}  # fmt: skip
"""Types of options by the annotations in `seawall.api`."""

INTERRUPTED = 130
"""Exit code of a command that was interrupted, as shells have it: 128 + SIGINT."""

OPTION_NAMES = {"changes": "--set", "as_json": "--json"}

app = typer.Typer(
    help=f"{api.__doc__}\n\nStart with: seawall run recipes/demo.toml",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command line; exit 0 done, 1 failed, 2 usage, 3 partly done, 130 interrupted.

    With --json, standard output holds one JSON document whatever happens; a failure is in its "error".
    """
    words = [word for word in sys.argv[1:] if word != "--debug"]
    with _terminable():
        result, error = _call_verb(words)
    try:
        _print(result, error, as_json="--json" in words)
    except BrokenPipeError:
        _drop_output()
        sys.exit(0)
    except OSError as full:
        _drop_output()
        error = full
    if error is None:
        sys.exit(0)
    if "--debug" in sys.argv:
        raise error
    code, text = _describe_failure(error)
    print(text, file=sys.stderr)
    sys.exit(code)


def _call_verb(words: list[str]) -> tuple[Result | None, BaseException | None]:
    """Call the verb; return its result, and the error of the verb or of some items."""
    result: Result | None = None
    try:
        given = app(words, standalone_mode=False)
        if given == INTERRUPTED:  # typer turns a KeyboardInterrupt into this number
            return None, KeyboardInterrupt()
        if isinstance(given, Result):
            result = given
            result.check()
    except (Exception, KeyboardInterrupt) as error:
        return result, error
    return result, None


def _drop_output() -> None:
    """Discard what is still buffered: nothing reads it, and Python would fail on it again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print(result: Result | None, error: BaseException | None, *, as_json: bool) -> None:
    if not as_json:
        if result is not None:
            print(result.text(), flush=True)
        return
    document = (result or Result()).data()
    if error is not None:
        code, text = _describe_failure(error)
        document["error"] = {"type": type(error).__name__, "message": text.removeprefix("error: "), "exit_code": code}
    print(json.dumps(document, indent=2), flush=True)


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end a verb as Ctrl-C does: buffers are flushed and locks released, so that the command can resume."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _describe_failure(error: BaseException) -> tuple[int, str]:
    """Return the exit code of a failure and the line that is printed for it."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, "interrupted; the same command goes on where it stopped"
    if isinstance(error, SeawallError):
        return error.exit_code, f"error: {error}"
    if isinstance(error, OSError) and error.strerror:
        where = error.filename or "system"
        return (
            1,
            f"error: {where}: expected to read or write it, got {error.strerror}; make room or mend the path, then run the same command again",
        )
    if hasattr(error, "format_message"):  # an error of click, which typer holds under a private name
        return _explain_usage(error)
    return 1, f"error: {type(error).__name__}: {error}; run again with --debug for the traceback"


def _explain_usage(error: BaseException) -> tuple[int, str]:
    text, code = error.format_message(), getattr(error, "exit_code", 2)  # type: ignore[attr-defined]
    if type(error).__name__ == "NoArgsIsHelpError":
        return code, text
    where = getattr(getattr(error, "ctx", None), "command_path", "seawall")
    return code, f"error: {' '.join(text.split())} See `{where} --help`"


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        print(f"seawall {__version__}")
        raise typer.Exit


def _command(verb: Callable[..., Result]) -> Callable[..., Result]:
    """Wrap one verb: options from its signature, help from its docstring; `main` prints what it returns."""
    summary, arguments, example = _read_docstring(verb.__doc__ or "")
    signature = inspect.signature(verb)
    parameters = [_option(p, arguments.get(p.name, "")) for p in signature.parameters.values() if p.name != "progress"]
    as_json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
    parameters.append(inspect.Parameter("as_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=as_json))

    @functools.wraps(verb)
    def command(**given: Any) -> Result:
        wants_json = given.pop("as_json")
        if "progress" not in signature.parameters:
            return verb(**given)
        with _progress(quiet=wants_json) as progress:
            return verb(**given, progress=progress)

    command.__doc__ = f"{summary}\n\nExample:  {example}"
    command.__signature__ = signature.replace(parameters=parameters, return_annotation=None)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


def _option(parameter: inspect.Parameter, text: str) -> inspect.Parameter:
    named = str(parameter.annotation)
    kind = OPTION_TYPES.get(named) or OPTION_TYPES[named.split(" | ")[0]]
    if parameter.default is inspect.Parameter.empty:
        return parameter.replace(
            annotation=Annotated[kind, typer.Argument(help=text)], kind=inspect.Parameter.KEYWORD_ONLY
        )
    flag = OPTION_NAMES.get(parameter.name, "--" + parameter.name.replace("_", "-"))
    if kind is bool:
        flag = f"{flag}/--no-{flag[2:]}"
    default = list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
    return parameter.replace(
        annotation=Annotated[kind, typer.Option(flag, help=text)], default=default, kind=inspect.Parameter.KEYWORD_ONLY
    )


def _read_docstring(text: str) -> tuple[str, dict[str, str], str]:
    text = inspect.cleandoc(text)
    summary = re.split(r"\n(?:Args|Returns|Raises|Command):\n", text)[0].strip()
    found = re.search(r"^Args:\n((?:[ ]+.*\n?|\n)+)", text, re.M)
    arguments: dict[str, str] = {}
    for line in (found.group(1) if found else "").splitlines():
        if start := re.match(r" {4}(\w+): (.*)", line):
            name = start.group(1)
            arguments[name] = start.group(2)
        elif line.strip() and arguments:
            arguments[name] += " " + line.strip()
    example = re.search(r"^Command:\n\s+(.*)", text, re.M)
    return summary, arguments, example.group(1) if example else ""


class _progress:  # noqa: N801
    """A progress bar per stage on stderr; with --json or without a terminal, one line per stage."""

    def __init__(self, *, quiet: bool) -> None:
        self.quiet = quiet or not sys.stderr.isatty()
        self.stage = ""

    def __enter__(self) -> Callable[[str, int, int, str], None]:
        if self.quiet:
            return self._plain
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self.bars = Progress(
            TextColumn("[bold]{task.description:<28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
        )  # fmt: skip
        self.tasks: dict[str, Any] = {}
        self.bars.start()
        return self._rich

    def __exit__(self, *_: object) -> None:
        if not self.quiet:
            self.bars.stop()

    def _rich(self, stage: str, done: int, total: int, note: str = "") -> None:
        if stage not in self.tasks:
            self.tasks[stage] = self.bars.add_task(stage, total=total, note=note)
        self.bars.update(self.tasks[stage], completed=done, total=total, note=note)

    def _plain(self, stage: str, done: int, total: int, note: str = "") -> None:
        if stage != self.stage:
            self.stage = stage
            print(f"{stage} ...", file=sys.stderr, flush=True)


for _verb in api.VERBS:
    _name, _short = _verb.__name__.replace("_", "-"), (_verb.__doc__ or "").strip().split("\n")[0]
    app.command(name=_name, short_help=_short)(_command(_verb))

if __name__ == "__main__":
    main()

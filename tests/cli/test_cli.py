"""The command line: quick help without torch, one-line errors, exit codes as promised."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from seawall import api
from terminal import cli
from tiny import pair


def seawall(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    code = "import sys; from seawall.cli import main; sys.argv[0] = 'seawall'; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        check=False,
        env={**os.environ, "COLUMNS": "100"},
    )


def test_help_and_import_load_neither_torch_nor_rasterio() -> None:
    code = (
        "import sys, seawall; from seawall import cli\n"
        "sys.argv = ['seawall', '--help']\n"
        "try: cli.main()\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'rasterio', 'numpy', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("verb", [verb.__name__.replace("_", "-") for verb in api.VERBS])
def test_every_verb_has_help_with_an_example_and_every_option_is_explained(verb: str) -> None:
    done = seawall(verb, "--help")
    assert done.returncode == 0
    assert f"Example:  seawall {verb}" in done.stdout
    options = done.stdout.split("Options:")[1].strip().splitlines()
    assert all(len(line.split()) > 2 for line in options if line.strip().startswith("--")), done.stdout


def test_unknown_verb_guesses_and_exits_2() -> None:
    done = seawall("rnu")
    assert done.returncode == 2
    assert "run" in done.stderr


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('name = "x"\nsed = 1', "did you mean 'seed'"),
        ('name = "x"\nseed = "a"', "seed"),
        ('name = "x"\n[model]\nname = "unte"', "did you mean 'unet'"),
        ('name = "x"\n[[attacks]]\nname = "pgd"\nthreats = ["linf 1"]', "unit"),
        ('name = "x"\n[[attacks]]\nname = "fgms"\nthreats = ["linf 1% reflectance"]', "did you mean 'fgsm'"),
        (
            'name = "x"\n[[attacks]]\nname = "pgd"\nsettings = {stps = 1}\nthreats = ["linf 1% reflectance"]',
            "did you mean 'steps'",
        ),
        ('name = "x"\n[[noises]]\nname = "erod"\nrates = [0.1]', "did you mean 'erode'"),
        ('name = "x"\n[training.settings]\nepoch = 3', "did you mean 'epochs'"),
    ],
)
def test_a_wrong_recipe_is_one_line_exit_2_before_any_work(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "r.toml").write_text(text)
    cli("run", tmp_path / "r.toml", "--out", tmp_path / "runs").refused(2, re.escape(says))
    assert not (tmp_path / "runs").exists()


def test_missing_recipe_exits_2_and_debug_shows_the_traceback(tmp_path: Path) -> None:
    assert seawall("run", "no.toml", cwd=tmp_path).returncode == 2
    assert "Traceback" in seawall("run", "no.toml", "--debug", cwd=tmp_path).stderr


def test_doctor_and_methods_speak_json() -> None:
    facts = json.loads(seawall("doctor", "--json").stdout)["facts"]
    assert "GTiff" in facts["drivers"]
    names = {row["name"] for row in json.loads(seawall("methods", "--kind", "attack", "--json").stdout)["table"]}
    assert {"fgsm", "bim", "pgd"} <= names


def test_closed_stdout_ends_quietly() -> None:
    done = subprocess.run(
        f"{sys.executable} -m seawall.cli methods --kind attack | head -1",
        shell=True,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("evaluate", "no.safetensors", "no-chips"), 1, "expected a chip folder"),
        (("run", "no.toml"), 2, "expected a recipe"),
        (("rnu",), 2, "No such command"),
        (("curate", "2", "--sensor", "s3"), 2, "sensor"),
    ],
)
def test_json_is_printed_on_failure_too(tmp_path: Path, words: tuple[str, ...], code: int, says: str) -> None:
    done = seawall(*words, "--json", cwd=tmp_path)
    document = json.loads(done.stdout)
    assert done.returncode == document["error"]["exit_code"] == code
    assert says in document["error"]["message"]
    assert document["error"]["message"] in done.stderr


def test_a_partial_failure_is_one_json_document(tmp_path: Path) -> None:
    pair(tmp_path / "in", "river", "good")
    pair(tmp_path / "in", "lake", "bad", seed=1)
    (tmp_path / "in/images/lake/bad.tif").write_bytes(b"")
    done = seawall("curate", "in", "--out", "chips", "--json", cwd=tmp_path)
    document = json.loads(done.stdout)
    assert done.returncode == document["error"]["exit_code"] == 3
    assert document["facts"]["made"] == 1 and len(document["failed"]) == 1
    assert "1 item(s) failed" in document["error"]["message"]
    again = seawall("curate", "2", "--out", "fine", "--json", cwd=tmp_path)
    assert again.returncode == 0 and "error" not in json.loads(again.stdout)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_verb_with_one_line_and_the_same_command_goes_on(
    tmp_path: Path, number: signal.Signals
) -> None:
    words = ["curate", "60", "--out", str(tmp_path / "chips")]
    running = subprocess.Popen(
        [sys.executable, "-m", "seawall.cli", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("chips/images/*.tif")) and time.monotonic() < deadline:
        time.sleep(0.02)
    running.send_signal(number)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    assert [line for line in err.splitlines() if line.startswith("interrupted")] == [
        "interrupted; the same command goes on where it stopped"
    ]
    assert "Traceback" not in err
    assert not (tmp_path / "chips" / ".lock").exists()


def test_a_full_output_device_is_one_line() -> None:
    done = subprocess.run(
        f"{sys.executable} -m seawall.cli methods --kind attack > /dev/full", shell=True, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ")


def test_a_method_says_its_module_and_the_other_kinds_of_its_name() -> None:
    facts = json.loads(cli("methods", "--name", "js", "--json").out)["facts"]
    assert (facts["kind"], facts["module"]) == ("attack", "seawall.attacks.apgd")
    assert facts["also of kind"].startswith("attack-loss")
    loss = json.loads(cli("methods", "--name", "js", "--kind", "attack-loss", "--json").out)["facts"]
    assert loss["module"] == "seawall.attacks.losses" and "also of kind" not in loss

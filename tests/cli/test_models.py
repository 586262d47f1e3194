"""`esper slots`, `esper blueprint`, `esper bench`, and the help of all commands."""

import json
import subprocess
import sys
from pathlib import Path

import click
import pytest

from esper_runtime.blueprint import canonical_id, catalogue
from esper_runtime.cli import command_reference
from esper_runtime.cli.app import esper, invoke
from tests.cli.manifests import write

ROOT = Path(__file__).resolve().parents[2]


def commands(command: click.Command, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = [path]
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            found += commands(inner, (*path, name))
    return found


@pytest.mark.parametrize("path", commands(esper), ids=lambda path: " ".join(path) or "esper")
def test_every_command_has_help_and_every_leaf_has_examples(
    path: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke([*path, "--help"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("Usage: esper")
    command: click.Command = esper
    for name in path:
        assert isinstance(command, click.Group)
        command = command.commands[name]
    if not isinstance(command, click.Group):
        assert "Examples:" in said
        assert f"esper {' '.join(path)}" in said.split("Examples:")[1]


def test_the_generated_page_of_the_commands_is_up_to_date() -> None:
    assert (ROOT / "docs" / "cli.md").read_text() == command_reference(), "run `make docs`"


def test_slots_say_what_fits_at_which_cost_and_why_the_rest_does_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path)
    assert invoke(["slots", str(path), "--output", "json"]) == 0
    slots = json.loads(capsys.readouterr().out)
    names = set(catalogue())
    for slot in slots:
        assert set(slot["fits"]) | set(slot["misfits"]) == names
        assert all(price["parameters"] > 0 for price in slot["fits"].values())
        assert all(slot["misfits"].values())
    assert any("layers.0" in slot["slot"] for slot in slots)
    assert invoke(["slots", str(path), "--why"]) == 0
    said = capsys.readouterr().out
    assert "What does not fit, and why" in said
    assert "it is made for image, the slot carries features" in said


def test_the_catalogue_is_listed_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["blueprint", "list", "--interface", "image", "--output", "json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert {item["interface"] for item in listed} == {"image"}
    assert invoke(["blueprint", "list"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in catalogue())
    name, item = next(iter(catalogue().items()))
    for asked in (name, canonical_id(item)):
        assert invoke(["blueprint", "show", asked]) == 0
        said = capsys.readouterr().out
        assert all(node.id in said for node in item.nodes)


def test_a_shown_blueprint_is_a_valid_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name, item = next(iter(catalogue().items()))
    assert invoke(["blueprint", "show", name, "--output", "json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    graph = {key: value for key, value in shown.items() if key not in ("id", "parameters")}
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(graph))
    assert invoke(["blueprint", "validate", str(path)]) == 0
    assert f"{name} is valid ({canonical_id(item)}" in capsys.readouterr().out


def test_benchmarks_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["bench"]) == 0
    assert "bars" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--help"], ["runs"], ["blueprint", "list"]], ids=" ".join)
def test_commands_that_need_no_torch_do_not_load_it(arguments: list[str], tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from esper_runtime.cli.app import invoke\n"
        f"code = invoke({arguments!r})\n"
        "sys.exit(code or ('torch' in sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_terminal_without_unicode_gets_replacements_and_no_traceback(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "esper_runtime.cli", "blueprint", "show", "Ü"],
        env={"PYTHONIOENCODING": "ascii", "PATH": "/usr/bin"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "no blueprint" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_reader_that_goes_away_early_is_no_error(tmp_path: Path) -> None:
    script = f"{sys.executable} -m esper_runtime.cli blueprint list | head -1"
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "blueprints" in done.stdout
    assert done.stderr == ""

"""The pages in docs/ describe what there is: commands, options, formats, dashboards, subjects and metrics."""

import re
from pathlib import Path

import click
import pytest

from esper_runtime.cli.app import esper
from esper_runtime.contracts import Channel, LoggerKind, OutputFormat, Steer
from esper_runtime.tamiyo.service.metrics import ServiceMetrics

DOCS = Path(__file__).parents[2] / "docs"
COMMON = {"--help", "--runs-dir", "--output"}
"""Options of nearly every command; docs/cli.md has them."""


def page(name: str) -> str:
    return (DOCS / f"{name}.md").read_text(encoding="utf-8")


def command(path: str) -> click.Command:
    found: click.Command = esper
    for word in path.split():
        assert isinstance(found, click.Group)
        found = found.commands[word]
    return found


@pytest.mark.parametrize(
    ("path", "where"),
    [
        ("tamiyo serve", "service"),
        ("export", "export"),
        ("replay", "replay"),
        *((name, "running") for name in ("status", "stop", "pause-growth", "resume-growth", "pin", "veto")),
        ("unlock", "running"),
    ],
)
def test_a_command_and_its_options_are_on_their_page(path: str, where: str) -> None:
    text = page(where)
    assert f"esper {path}" in text
    options = {name for parameter in command(path).params for name in parameter.opts if name[:2] == "--"}
    assert [
        name for name in sorted(options - COMMON) if f"`{name}" not in text and f" {name} " not in text
    ] == []


def test_every_steering_command_is_on_the_page_of_running() -> None:
    words = [re.sub("(?<!^)(?=[A-Z])", "-", str(each)).lower() for each in Steer]
    assert [word for word in words if f"`esper {word} " not in page("running")] == []


def test_the_service_says_the_metrics_of_its_page_and_no_others() -> None:
    said = {line.split()[2] for line in ServiceMetrics().text().decode().splitlines() if "# TYPE" in line}
    said = {name for name in said if not name.endswith("_created")}
    assert said == set(re.findall(r"`(esper_tamiyo_\w+)", page("service")))


@pytest.mark.parametrize(
    ("kind", "where", "form"),
    [(OutputFormat, "export", "`{}`"), (LoggerKind, "callbacks", "{}"), (Channel, "bus", "RUN.{}`")],
)
def test_every_kind_is_on_its_page(
    kind: type[OutputFormat | LoggerKind | Channel], where: str, form: str
) -> None:
    text = page(where)
    assert [str(each) for each in kind if form.format(each) not in text] == []

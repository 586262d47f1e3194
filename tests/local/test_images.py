"""The Dockerfile and what builds it, as far as that can be told without building."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "images" / "Dockerfile").read_text()
STAGES = re.findall(r"^FROM (\S+) AS (\S+)$", DOCKERFILE, re.MULTILINE)
BUILD = ROOT / "images" / "build.sh"


def stage(name: str) -> str:
    """The lines of a stage."""
    return DOCKERFILE.split(f" AS {name}\n", 1)[1].split("\nFROM ", 1)[0]


def build(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([BUILD, *arguments], capture_output=True, text=True, check=False)


def test_there_is_a_target_for_every_image_that_the_chart_names() -> None:
    values = yaml.safe_load((ROOT / "charts" / "esper" / "values.yaml").read_text())
    named = {image["repository"] for image in values["image"].values() if isinstance(image, dict)}
    targets = {f"esper/{name}" for _, name in STAGES if "USER 10001" in stage(name)}
    assert named == targets == {"esper/operator", "esper/runtime", "esper/runtime-cuda"}


def test_all_stages_stand_on_the_one_base_that_a_build_argument_names() -> None:
    names = {name for _, name in STAGES}
    assert {origin for origin, _ in STAGES} - names == {"${BASE}"}
    copied = set(re.findall(r"--from=(\S+)", DOCKERFILE))
    assert copied <= names


def test_every_copied_file_is_there_and_not_ignored() -> None:
    lines = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
    copied = {name for line in lines for name in line.split()}
    assert all((ROOT / name).exists() for name in copied)
    rules = (ROOT / ".dockerignore").read_text().splitlines()
    assert {rule[1:] for rule in rules if rule.startswith("!")} == copied


def test_the_last_lines_of_every_image_name_a_plain_user_by_number() -> None:
    for target in ("operator", "runtime", "runtime-cuda"):
        users = re.findall(r"^USER (\S+)$", stage(target), re.MULTILINE)
        assert users[-1] == "10001:10001"


LIGHT = ("artifact", "contracts", "nissa", "oona", "planning", "sandbox", "tamiyo", "urza")


def imported(folders: Iterable[Path]) -> set[str]:
    """Names of the packages of others that modules import."""
    found: set[str] = set()
    for path in (path for folder in folders for path in folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.split(".")[0])
    return found - sys.stdlib_module_names - {"esper_runtime", "esper_operator"}


def plain(requirement: str) -> str:
    """The name in a requirement, as it is compared."""
    return re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def brought(names: set[str]) -> set[str]:
    """Distributions with all that they need themselves."""
    known: set[str] = set()
    while names - known:
        name = (names - known).pop()
        known.add(name)
        try:
            needs = [need for need in requires(name) or () if "extra ==" not in need]
        except PackageNotFoundError:
            continue  # for another platform
        names |= {plain(need) for need in needs}
    return known


def test_the_operators_image_gets_every_package_that_is_imported_in_it_and_no_torch() -> None:
    """What `RUN` in the stage `source` writes, against the imports of the packages without torch."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    trains = ast.literal_eval(re.findall(r"trains = (\(.*?\));", DOCKERFILE)[0])
    named = {plain(need) for need in project["dependencies"]} - set(trains)
    named |= {plain(need) for need in project["optional-dependencies"]["operator"]}
    there = brought(named)
    folders = [ROOT / "esper_runtime" / name for name in LIGHT]
    homes = packages_distributions()
    wanted = imported([*folders, ROOT / "operator"])
    lacking = {name for name in wanted if not {plain(each) for each in homes.get(name, (name,))} & there}
    assert not lacking
    assert "torch" not in there


def test_help_says_what_there_is_and_a_wrong_word_is_refused() -> None:
    said = build("--help")
    assert said.returncode == 0
    for word in ("operator", "runtime-cuda", "--engine", "--registry", "--base", "SOURCE_DATE_EPOCH"):
        assert word in said.stdout
    wrong = build("operatr")
    assert wrong.returncode == 2
    assert "no option or target 'operatr'" in wrong.stderr


@pytest.mark.parametrize("arguments", [["--tag"], ["--engine", ""], ["--engine", "nothing"]])
def test_an_option_without_a_usable_value_is_refused(arguments: list[str]) -> None:
    done = build(*arguments)
    assert done.returncode == 2
    assert "images/build.sh: " in done.stderr

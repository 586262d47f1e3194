"""Rules and dashboard: they ask for nothing that no process serves, and the rules fire when they should."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from esper_operator.credentials import NoCredentials
from esper_operator.forge_metrics import ForgeMetrics
from esper_operator.kube import RUN, KubeApi
from esper_operator.lease import Leadership
from esper_operator.library_metrics import LibraryMetrics
from esper_operator.process import Operator, _figures
from esper_runtime.nissa import Exposition, TrainingMetrics, WorkerMetrics
from esper_runtime.tamiyo.service.metrics import ServiceMetrics
from tests.chart.rendering import CHART
from tests.nissa.journals import grown
from tests.operator.forge_world import SETTINGS, ForgeWorld, blueprint

RULES = CHART / "files" / "rules.yaml"
DASHBOARD = json.loads((CHART / "files" / "dashboard.json").read_text())


def operator_metrics() -> bytes:
    """What an operator serves that knows a run and has called the API."""
    kube = KubeApi(cast(Any, None))
    kube.calls["list", "MorphogeneticRun", 200] = 1
    operator = Operator(SETTINGS, kube, NoCredentials())
    head = {"name": "small", "namespace": "team", "uid": "0" * 36, "resourceVersion": "1"}
    operator.store.put(RUN, {"metadata": head, "spec": {}, "status": {"phase": "Running"}})
    operator.passes.seconds.labels("MorphogeneticRun").observe(0.1)
    registry = operator.passes.registry
    registry.register(_figures(operator, Leadership(kube, "esper", "esper-operator", "me")))
    registry.register(ForgeMetrics(operator.forge))
    world = ForgeWorld()
    world.apply(blueprint())
    world.settle()
    registry.register(LibraryMetrics(cast(Any, world.library)))
    return generate_latest(registry)


def asked() -> set[str]:
    """Every metric that a rule or a panel names."""
    texts = [rule["expr"] for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
    texts += [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    texts += [variable["query"]["query"] for variable in DASHBOARD["templating"]["list"][1:]]
    return set(re.findall(r"\besper_(?!dev_)[a-z_]+", " ".join(texts)))


@pytest.fixture(scope="module")
def served() -> set[str]:
    """Every sample's name that a process of ours serves."""
    worker = WorkerMetrics("tezzeret", lambda: {"failed": 0})
    texts = [
        Exposition(TrainingMetrics(grown().entries, lambda: (True, 0))).text(),
        Exposition(worker).text(),
        ServiceMetrics().text(),
        operator_metrics(),
    ]
    return {
        sample.name
        for text in texts
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def test_rules_and_dashboard_ask_for_what_is_served(served: set[str]) -> None:
    assert len(asked()) > 12
    assert asked() - served == set()


@pytest.mark.skipif(shutil.which("promtool") is None, reason="wants promtool: apt-get install prometheus")
def test_the_rules_are_sound_and_fire(tmp_path: Path) -> None:
    found = subprocess.run(["promtool", "check", "rules", RULES], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    cases = yaml.safe_load((Path(__file__).parent / "rules_test.yaml").read_text())
    cases["rule_files"] = [str(RULES)]
    path = tmp_path / "cases.yaml"
    path.write_text(yaml.safe_dump(cases))
    found = subprocess.run(["promtool", "test", "rules", path], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


def test_every_alert_has_a_case_in_which_it_fires() -> None:
    cases = yaml.safe_load((Path(__file__).parent / "rules_test.yaml").read_text())["tests"]
    fired = {check["alertname"] for case in cases for check in case["alert_rule_test"] if check["exp_alerts"]}
    rules = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
    assert fired == {rule["alert"] for rule in rules}


def test_every_alert_says_what_it_means() -> None:
    for group in yaml.safe_load(RULES.read_text())["groups"]:
        for rule in group["rules"]:
            assert rule["labels"]["severity"] in ("critical", "warning", "info")
            assert rule["annotations"]["summary"]
            assert rule["annotations"]["description"]

"""Manifests that cannot work: each is told what is wrong, where, and how to mend it, and starts nothing.

`tests/contracts/test_crds.py` has the API server's part of it, played by schema and rules without a cluster.
"""

import asyncio
import copy
from typing import Any

import pytest

from benchmarks.control_plane import ControlPlane
from esper_operator.kube import RUN, Object, RefusedError
from esper_runtime.contracts import BUILTIN_HOSTS, BUILTIN_TASKS
from tests.cli.manifests import GOOD, changed
from tests.contracts.test_crds import BAD_RUNS, CLAIM
from tests.operator.world import World

UNSEEN: list[tuple[str, Any, str]] = [
    # what schema and rules let pass, and what the operator must name
    *(
        ("spec.template.volumes", [CLAIM | {"mountPath": path}], "mountPath")
        for path in (
            "/etc/esper",
            "/etc/esper/more",
            "/var/esper",
            "/var/esper/",
            "/tmp",
            "/tmp/x",
            "/dev/shm",
        )
    ),
    *(
        (f"spec.template.{what}", {key: "x"}, f"spec.template.{what}")
        for what in ("labels", "annotations")
        for key in ("esper.dev/run", "app.kubernetes.io/name", "kueue.x-k8s.io/queue-name")
    ),
    ("spec.template.labels", {"batch.kubernetes.io/job-name": "x"}, "spec.template.labels"),
    ("spec.host.builtin", "mpl", "spec.host.builtin: given 'mpl'; did you mean 'mlp'?"),
    ("spec.host.builtin", "resnet", "spec.host.builtin: given 'resnet'"),
    ("spec.task.builtin", "mnist", "spec.task.builtin: given 'mnist'; did you mean 'mnist1d'?"),
    (
        "spec",
        GOOD["spec"] | {"innovation": {"enabled": True}, "growth": {"blueprints": {"exclude": ["karn-*"]}}},
        "allows no blueprint that is invented",
    ),
    ("spec.task.builtin", "imagenet-22k", "allowed: " + ", ".join(BUILTIN_TASKS)),
]
REMEDIES = (
    "allowed:",
    "needed:",
    "give ",
    "must",
    "known name",
    "known here",
    "one of yours",
    "set by Esper",
)
"""One of these leads to what would be right."""
NAMED = [case for case in BAD_RUNS if not case[0].startswith("metadata")]
"""The others have names or metadata that no API server takes, with or without a definition."""


def resource(path: str, given: Any) -> Object:
    body = copy.deepcopy(changed((path, given)))
    body["metadata"]["namespace"] = "team"
    return body


def names(cases: list[tuple[str, Any, str]]) -> list[str]:
    return [f"{number}-{path}" for number, (path, _, _) in enumerate(cases)]


@pytest.mark.parametrize(("path", "given", "said"), UNSEEN + NAMED, ids=names(UNSEEN + NAMED))
def test_the_operator_accepts_none_says_why_and_starts_nothing(path: str, given: Any, said: str) -> None:
    """Those, too, that the API server refuses: its definitions may be older than the operator."""
    world = World()
    world.cluster.add(RUN, resource(path, given))
    world.process.one_pass()
    condition = world.condition("Accepted")
    assert (condition["status"], condition["reason"]) == ("False", "Invalid")
    assert said in condition["message"]
    assert any(word in condition["message"] for word in REMEDIES)
    assert world.status["phase"] == "Rejected"
    assert [call.kind for call in world.cluster.writes()] == ["MorphogeneticRun", "Event"]
    before = len(world.cluster.calls)
    world.process.one_pass()
    assert len(world.cluster.calls) == before


def test_what_is_built_into_an_image_of_ones_own_is_not_known_before_it_runs() -> None:
    world = World()
    body = resource("spec.host.builtin", "resnet")
    body["spec"]["template"] = {"image": "mine:1"}
    world.cluster.add(RUN, body)
    world.settle()
    assert world.status["phase"] == "Running"
    assert "resnet" not in BUILTIN_HOSTS


@pytest.mark.apiserver
def test_a_real_api_server_refuses_more_than_sixty_and_keeps_none(plane: ControlPlane) -> None:
    async def work() -> list[str]:
        api = await plane.api()
        wrong = []
        try:
            for path, given, said in BAD_RUNS:
                try:
                    await api.create(RUN, resource(path, given))
                except RefusedError as error:
                    field = (said or path).split(".")[-1].split("[")[0]
                    if field not in str(error):
                        wrong.append(f"{path}: {given!r}: {error}")
                else:
                    wrong.append(f"{path}: {given!r} is taken")
            assert await api.get(RUN, "team", "small") is None
        finally:
            await api.close()
        return wrong

    assert len(BAD_RUNS) > 60
    assert asyncio.run(work()) == []

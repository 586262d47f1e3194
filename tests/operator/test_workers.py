"""The forge's workers as Jobs: as many as there is work for, within limits, replaced with patience."""

import copy
import json
from typing import Any

import kubernetes_validate
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from esper_operator.forge_metrics import ForgeMetrics
from esper_operator.kube import JOB
from esper_operator.pools import Pool, read_pools
from esper_operator.settings import Settings
from esper_operator.worker_jobs import worker_job
from esper_runtime.blueprint import catalogue
from esper_runtime.contracts import InputError
from esper_runtime.planning import CreateWorker
from tests.operator.forge_world import POOL, SECRETS, ForgeWorld, blueprint

GPU = Pool.model_validate(
    {
        "name": "a100",
        "device": "cuda",
        "tezzeret": 2,
        "urabrask": 2,
        "karn": 1,
        "nodeSelector": {"gpu": "a100"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "runtimeClassName": "nvidia",
        "resources": {"limits": {"nvidia.com/gpu": 1, "memory": "8Gi"}},
    }
)
SETTINGS = Settings(
    pools=(POOL, GPU), image="cpu:1", image_cuda="cuda:1", pull_secrets=("mine",), priority_workers="low"
)


def busy(pools: tuple[Pool, ...] = (POOL,), blueprints: int = 6) -> ForgeWorld:
    """A world whose pools have told what they are, with so many kernels to be made."""
    world = ForgeWorld(Settings(pools=pools))
    for graph in list(catalogue().values())[:blueprints]:
        world.apply(blueprint(graph.name, graph))
    world.look()
    for job in list(world.cluster.of(JOB)):
        if "target" in job["metadata"]["name"]:
            world.work()
    world.look()
    return world


def ends(world: ForgeWorld, name: str, end: str) -> None:
    world.finish(world.cluster.one(JOB, name, "esper"), end)
    world.look()


@pytest.mark.parametrize("role", ["tezzeret", "urabrask", "karn", "target"])
@pytest.mark.parametrize("pool", [POOL, GPU], ids=["cpu", "cuda"])
@pytest.mark.parametrize("version", ["1.30", "1.37"])
def test_a_workers_job_is_valid_restricted_and_has_nothing_but_its_roles_secret(
    role: str, pool: Pool, version: str
) -> None:
    owner = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "esper-operator", "uid": "1"}
    secret = None if role == "target" else f"esper-{role}-1"
    made = worker_job(CreateWorker(role, pool.name, 3), pool, "shape", secret, SETTINGS, owner)
    body = {"apiVersion": "batch/v1", "kind": "Job", **made}
    kubernetes_validate.validate(body, version, strict=True)
    assert body["metadata"]["name"] == f"esper-{role}-{pool.name}-3"
    assert body["metadata"]["namespace"] == "esper"
    assert body["metadata"]["ownerReferences"] == [owner]
    assert (body["spec"]["completions"], body["spec"]["parallelism"]) == (1, 1)
    pod = body["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert "serviceAccountName" not in pod
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["priorityClassName"] == "low"
    (container,) = pod["containers"]
    assert container["command"] == ["esper", "pod", role]
    assert container["image"] == ("cuda:1" if pool is GPU else "cpu:1")
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    secrets = [volume["secret"]["secretName"] for volume in pod["volumes"] if "secret" in volume]
    assert secrets == ([] if secret is None else [secret])
    if pool is GPU:
        assert pod["nodeSelector"] == {"gpu": "a100"}
        assert pod["tolerations"][0]["key"] == "nvidia.com/gpu"
        assert pod["runtimeClassName"] == "nvidia"
        assert container["resources"]["limits"]["nvidia.com/gpu"] == 1


def test_there_are_as_many_workers_as_there_is_work_and_never_more_than_the_pool_may_have() -> None:
    pool = Pool(name="cpu", device="cpu", tezzeret=3, urabrask=1)
    world = busy((pool,), blueprints=2)
    assert [name for name in world.jobs() if "tezzeret" in name] == [
        f"esper-tezzeret-cpu-{n}" for n in (1, 2)
    ]
    world = busy((pool,), blueprints=9)
    assert [name for name in world.jobs() if "tezzeret" in name] == [
        f"esper-tezzeret-cpu-{n}" for n in (1, 2, 3)
    ]
    assert [name for name in world.jobs() if "urabrask" in name] == ["esper-urabrask-cpu-1"]


def test_workers_get_the_secret_that_the_operator_has_made_for_their_role() -> None:
    world = busy()
    mounted = {
        job["metadata"]["labels"]["app.kubernetes.io/component"]: volume["secret"]["secretName"]
        for job in world.cluster.of(JOB)
        for volume in job["spec"]["template"]["spec"]["volumes"]
        if "secret" in volume
    }
    assert mounted == {role: SECRETS[role] for role in ("tezzeret", "urabrask")}


def test_finished_workers_are_removed_and_new_ones_have_new_numbers() -> None:
    world = busy()
    ends(world, "esper-tezzeret-cpu-1", "Complete")
    assert [name for name in world.jobs() if "tezzeret" in name] == ["esper-tezzeret-cpu-2"]
    deleted = [call.name for call in world.cluster.calls if call.verb == "delete"]
    assert deleted == ["esper-tezzeret-cpu-1"]


def test_workers_that_fail_are_replaced_after_waits_that_double_and_the_condition_says_so() -> None:
    world = busy()
    for failures, wait in enumerate((10, 20, 40), start=1):
        (name,) = [name for name in world.jobs() if "tezzeret" in name]
        world.finish(world.cluster.one(JOB, name, "esper"), "Failed")
        at = world.cluster.one(JOB, name, "esper")["status"]["conditions"][0]
        world.now = 1767225600.0
        at["lastTransitionTime"] = "2026-01-01T00:00:00Z"
        world.now += wait - 1
        world.look()
        assert [each for each in world.jobs() if "tezzeret" in each] == [name], "the failed one tells why"
        served = world.condition("Served", next(iter(catalogue())))
        assert served["reason"] == "WorkersFail"
        assert f"job/{name}" in served["message"]
        assert f"{failures} workers" in served["message"]
        world.now += 2
        world.look()
        names = [each for each in world.jobs() if "tezzeret" in each]
        assert names != [name]
        world.look()
    assert len([each for each in world.jobs() if "tezzeret" in each]) == 1


def test_depths_that_are_not_known_change_nothing() -> None:
    world = busy()
    before = world.jobs()
    world.library.ready = False
    world.look()
    assert world.jobs() == before
    world.finish(world.cluster.one(JOB, "esper-tezzeret-cpu-1", "esper"), "Complete")
    world.look()
    assert [name for name in world.jobs() if "tezzeret" in name] == []


def test_the_name_of_somebody_elses_job_is_passed_over() -> None:
    world = ForgeWorld()
    foreign = {"metadata": {"name": "esper-target-cpu-1", "namespace": "esper"}, "spec": {}}
    world.cluster.add(JOB, copy.deepcopy(foreign))
    world.apply(blueprint())
    world.look()
    world.look()
    assert world.jobs() == ["esper-target-cpu-1", "esper-target-cpu-2"]


def test_another_image_or_other_nodes_are_asked_what_they_are_anew() -> None:
    world = ForgeWorld()
    world.apply(blueprint())
    world.settle()
    assert world.jobs() == ["esper-target-cpu-1"]
    world.settings = Settings(pools=(POOL,), image="esper-runtime:next")
    world.begin()
    world.settle()
    assert world.jobs() == ["esper-target-cpu-2"]


def test_a_pool_that_told_nothing_is_asked_again_after_a_while() -> None:
    world = ForgeWorld()
    world.apply(blueprint())
    world.look()
    world.finish(world.cluster.one(JOB, "esper-target-cpu-1", "esper"), "Complete", "no words of ours")
    world.now += 5
    world.look()
    assert world.jobs() == ["esper-target-cpu-1"]
    world.now += 10
    world.look()
    world.look()
    assert world.jobs() == ["esper-target-cpu-2"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"device": "cpu"}, "pools[0].name: is needed; allowed: 1 to 20 lower-case"),
        ({"name": "cpu"}, "pools[0].device: is needed; allowed: cpu or cuda"),
        ({"name": "cpu", "device": "tpu"}, "pools[0].device: given 'tpu'; allowed: cpu or cuda"),
        ({"name": "cpu", "device": "cpu", "tezeret": 1}, "there is no such field; did you mean 'tezzeret'?"),
        (
            {"name": "cpu", "device": "cpu", "tezzeret": "1"},
            "given '1'; allowed: a whole number from 0 to 64",
        ),
        ({"name": "C", "device": "cpu"}, "pools[0].name: given 'C'; allowed: 1 to 20 lower-case"),
        (
            {"name": "c", "device": "cpu", "tolerations": [{"operator": "Is"}]},
            "pools[0].tolerations[0].operator: given 'Is'; allowed: 'Equal' or 'Exists'",
        ),
        (
            {"name": "c", "device": "cpu", "resources": {"limits": {"cpu": "1x"}}},
            "pools[0].resources.limits.cpu",
        ),
    ],
)
def test_pools_are_read_strictly(given: Any, words: str) -> None:
    with pytest.raises(InputError) as error:
        read_pools(json.dumps([given]))
    assert words in str(error.value)
    with pytest.raises(InputError, match=r"ESPER_OPERATOR_POOLS: pools\[0\]"):
        Settings.from_environment({"ESPER_OPERATOR_POOLS": json.dumps([given])})


def test_two_pools_of_one_name_are_refused() -> None:
    with pytest.raises(InputError, match="several pools are named cpu"):
        read_pools(json.dumps([{"name": "cpu", "device": "cpu"}] * 2))


def test_metrics_tell_the_workers_and_the_targets_that_nobody_serves() -> None:
    world = busy(blueprints=3)
    registry = CollectorRegistry()
    registry.register(ForgeMetrics(world.forge))
    text = generate_latest(registry).decode()
    assert 'esper_operator_workers{pool="cpu",role="tezzeret"} 1.0' in text
    assert "esper_operator_unserved_targets 0.0" in text

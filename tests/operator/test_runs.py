"""A run on a cluster, pass by pass: what is made, what is said, and what is left alone."""

import json
from typing import Any, cast

import pytest

from esper_operator.credentials import NoCredentials
from esper_operator.kube import (
    CLAIM,
    EVENT,
    JOB,
    POD,
    RUN,
    SECRET,
    SERVICE,
    Kind,
    KubeApi,
    Object,
    RefusedError,
)
from esper_operator.names import RunKey
from esper_operator.pools import Pool
from esper_operator.process import Operator
from esper_operator.settings import Settings
from esper_runtime.contracts import parse_run
from esper_runtime.planning import Workplaces, served_runs
from tests.operator.world import KEY, World, manifest


def running(**spec: Any) -> World:
    """A world whose run trains."""
    world = World()
    world.apply(**spec)
    world.settle()
    return world


def test_a_new_run_gets_each_child_once_and_one_status_and_one_event() -> None:
    world = World()
    world.apply()
    world.process.one_pass()
    made = [(call.verb, call.kind, call.name) for call in world.cluster.writes()]
    uid8 = world.run["metadata"]["uid"][:8]
    assert made[:-1] == [
        ("create", "Service", "small"),
        ("create", "PersistentVolumeClaim", "small-data"),
        ("create", "NetworkPolicy", f"esper-small-{uid8}"),
        ("create", "Secret", f"esper-small-{uid8}-1"),
        ("create", "Job", "small-1"),
        ("apply_status", "MorphogeneticRun", "small"),
    ]
    assert made[-1][:2] == ("create", "Event")
    assert world.status["phase"] == "Starting"
    assert world.condition("Accepted")["status"] == "True"


def test_a_second_pass_with_nothing_changed_writes_nothing_and_asks_nothing() -> None:
    world = running()
    before = len(world.cluster.calls)
    for _ in range(3):
        world.process.one_pass()
    assert world.cluster.calls[before:] == []
    world.begin().one_pass()  # nor does a fresh operator
    assert world.cluster.calls[before:] == []


def test_a_ready_pod_is_shown_as_running() -> None:
    world = running()
    assert world.status["phase"] == "Running"
    assert world.condition("Running")["reason"] == "PodsReady"
    assert world.status["startedAt"] == "2026-01-01T00:00:00Z"


def test_suspension_ends_only_when_no_pod_is_left_and_resuming_is_the_next_attempt() -> None:
    world = running()
    world.apply(suspend=True)
    world.process.one_pass()
    assert world.status["phase"] == "Suspending"
    assert world.cluster.one(JOB, "small-1")["metadata"]["deletionTimestamp"]
    world.cluster.objects.pop(("Job", "team", "small-1"))  # the Job is gone, its pod still writes
    world.begin().one_pass()
    assert world.status["phase"] == "Suspending"
    world.cluster.collect()
    world.settle()
    assert world.status["phase"] == "Suspended"
    assert world.condition("Suspended")["status"] == "True"
    assert world.cluster.of(POD) == []
    world.apply(suspend=False)
    world.settle()
    assert world.job_names() == ["small-2"]
    assert world.status["phase"] == "Running"
    assert world.condition("Suspended") | {"lastTransitionTime": ""} == {
        "type": "Suspended",
        "status": "False",
        "reason": "Resumed",
        "message": "",
        "lastTransitionTime": "",
        "observedGeneration": 3,
    }
    assert world.cluster.most_trainers == 1


def test_a_queue_gets_a_suspended_job_and_what_it_admits_is_not_made_again() -> None:
    world = running(queueName="team-queue")
    job = world.cluster.one(JOB, "small-1")
    assert job["spec"]["suspend"] is True
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team-queue"
    assert world.status["phase"] == "Queued"
    assert world.condition("QuotaReserved")["status"] == "False"
    world.cluster.change(JOB, "small-1", spec=job["spec"] | {"suspend": False})  # as Kueue does
    world.settle()
    assert world.status["phase"] == "Running"
    assert world.condition("QuotaReserved")["status"] == "True"
    # It also unsuspends while the run is being suspended by a person.
    world.apply(queueName="team-queue", suspend=True)
    world.process.one_pass()
    job = world.cluster.one(JOB, "small-1")
    world.cluster.change(JOB, "small-1", spec=job["spec"] | {"suspend": True})
    world.process.one_pass()
    world.cluster.change(JOB, "small-1", spec=job["spec"] | {"suspend": False})
    world.settle()
    assert (world.status["phase"], world.job_names()) == ("Suspended", [])


def test_a_drained_pod_uses_up_no_retry() -> None:
    world = running(retry={"limit": 0})
    pod = world.cluster.of(POD)[0]
    world.cluster.remove(POD, "team", pod["metadata"]["name"])
    world.process.one_pass()
    world.cluster.run_jobs()  # the controller replaces it; a disruption does not count as failed
    world.settle()
    assert world.status["phase"] == "Running"
    assert world.status["usage"]["retries"] == 0
    assert world.job_names() == ["small-1"]


def test_failed_pods_are_counted_as_retries() -> None:
    world = running()
    world.cluster.run_jobs(failed=2)
    world.process.one_pass()
    assert world.status["usage"]["retries"] == 2


def test_the_end_is_recorded_before_the_job_goes_and_the_run_goes_after_its_time() -> None:
    world = running(ttlSecondsAfterFinished=60)
    world.cluster.run_jobs(end="Complete")
    world.process.one_pass()
    assert world.status["phase"] == "Succeeded"
    assert world.cluster.one(JOB, "small-1")["metadata"].get("deletionTimestamp") is None
    assert world.process.one_pass() == pytest.approx(60)
    world.cluster.collect()
    assert world.job_names() == []
    world.now += 61
    world.process.one_pass()
    world.cluster.collect()
    assert world.cluster.of(RUN) == []
    assert [kind for kind, _, _ in world.cluster.objects if kind != "Event"] == []


def test_a_limit_that_passed_is_recorded_before_anything_is_removed_and_nothing_starts_anew() -> None:
    world = World()
    world.apply(deadlines={"pendingSeconds": 30})
    world.process.one_pass()
    world.now += 31
    world.process.one_pass()
    assert world.condition("Failed")["reason"] == "PendingDeadlineExceeded"
    world.settle()
    assert world.job_names() == []
    assert world.status["phase"] == "Failed"


@pytest.mark.parametrize(("code", "reason"), [(2, "WrongInput"), (77, "BudgetUsed"), (1, "R")])
def test_a_failure_is_told_with_its_reason(code: int, reason: str) -> None:
    world = running()
    pod = world.cluster.of(POD)[0]["metadata"]["name"]
    ended = {"name": "training", "state": {"terminated": {"exitCode": code, "reason": "Error"}}}
    world.cluster.change(POD, pod, status={"phase": "Failed", "containerStatuses": [ended]})
    world.cluster.run_jobs(end="Failed")
    world.settle()
    assert world.status["phase"] == "Failed"
    assert world.condition("Failed")["reason"] == reason
    assert world.status["result"]["reason"]


def test_another_template_is_another_attempt_and_what_pods_are_not_made_of_restarts_nothing() -> None:
    world = running()
    world.apply(template={"image": "other"})
    world.settle()
    assert world.job_names() == ["small-2"]
    assert world.cluster.most_trainers == 1
    world.apply(template={"image": "other"}, ttlSecondsAfterFinished=5)
    world.settle()
    assert world.job_names() == ["small-2"]


def test_names_that_are_taken_are_left_alone_and_said_and_used_once_they_are_free() -> None:
    for kind, name in ((JOB, "small-1"), (SERVICE, "small"), (CLAIM, "small-data")):
        world = World()
        theirs = world.cluster.add(kind, {"metadata": {"name": name, "namespace": "team"}, "spec": {}})
        world.apply()
        after = world.process.one_pass()
        assert after is not None, "it is looked at again, since no event will tell"
        assert world.condition("Accepted")["reason"] == "NameTaken"
        assert name in world.condition("Accepted")["message"]
        assert world.status["phase"] == "Rejected"
        assert world.cluster.one(kind, name) == theirs
        world.cluster.remove(kind, "team", name)
        world.process.one_pass()
        world.settle()
        assert world.status["phase"] == "Running"


def test_a_run_deleted_and_made_again_under_its_name_waits_for_the_children_of_the_one_before() -> None:
    world = running()
    first = world.run["metadata"]["uid"]
    world.cluster.remove(RUN, "team", "small")
    world.apply()
    world.process.one_pass()  # the garbage collector was not here yet
    assert {owner for _, _, owner in world.cluster.made if owner} >= {first}
    world.settle()
    assert world.run["metadata"]["uid"] != first
    owners = {job["metadata"]["ownerReferences"][0]["uid"] for job in world.cluster.of(JOB)}
    assert owners == {world.run["metadata"]["uid"]}
    assert world.status["phase"] == "Running"
    assert world.cluster.most_trainers == 1


@pytest.mark.parametrize(
    ("spec", "where"),
    [
        ({"host": {"builtin": "mlp", "entrypoint": "a:b"}}, "spec.host"),
        ({"training": {"steps": 60, "batchSize": 7, "workers": {"count": 2}}}, "spec.training"),
        ({"template": {"volumes": [{"name": "x", "mountPath": "/etc/esper", "claim": "c"}]}}, "mountPath"),
        ({"template": {"labels": {"esper.dev/run": "other"}}}, "spec.template.labels"),
    ],
)
def test_a_manifest_that_cannot_work_starts_nothing_and_says_what_where_and_how(
    spec: dict[str, Any], where: str
) -> None:
    world = World()
    world.apply(**spec)
    world.process.one_pass()
    condition = world.condition("Accepted")
    assert (condition["status"], condition["reason"]) == ("False", "Invalid")
    assert where in condition["message"]
    assert "given" in condition["message"]
    assert [call.kind for call in world.cluster.writes()] == ["MorphogeneticRun", "Event"]
    world.apply()
    world.settle()
    assert world.status["phase"] == "Running"


@pytest.mark.parametrize(
    "spec",
    [
        {"host": {"builtin": "mlp", "args": {"width": 9}}},
        {"task": {"builtin": "digits", "args": {"size": 9}}},
        {"training": {"steps": 60, "batchSize": 64, "randomSeed": 5}},
    ],
)
@pytest.mark.parametrize("recorded", [True, False])
def test_what_never_changes_is_refused_and_what_trains_goes_on(spec: dict[str, Any], recorded: bool) -> None:
    world = running()
    if not recorded:  # killed before its status was written: the Job knows
        world.cluster.change(RUN, "small", status={})
    world.apply(**spec)
    world.settle()
    assert (world.condition("Accepted")["status"], world.condition("Accepted")["reason"]) == (
        "False",
        "Changed",
    )
    assert world.status["phase"] == "Running"
    assert world.job_names() == ["small-1"]
    world.apply(**spec, suspend=True)
    world.settle()
    world.apply(**spec)
    world.settle()
    assert world.job_names() == [], "no attempt is made of what the run is not"
    world.apply()
    world.settle()
    assert (world.status["phase"], world.job_names()) == ("Running", ["small-2"])


@pytest.mark.parametrize(
    ("status", "reason", "remedy"),
    [
        (
            {
                "phase": "Pending",
                "conditions": [
                    {
                        "type": "PodScheduled",
                        "status": "False",
                        "reason": "Unschedulable",
                        "message": "0/3 nodes are available: 3 Insufficient cpu.",
                    }
                ],
            },
            "Unschedulable",
            "template.resources.requests",
        ),
        (
            {
                "phase": "Pending",
                "containerStatuses": [
                    {
                        "name": "training",
                        "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no"}},
                    }
                ],
            },
            "ImageCannotBePulled",
            "template.image",
        ),
        (
            {
                "phase": "Pending",
                "containerStatuses": [
                    {
                        "name": "training",
                        "state": {
                            "waiting": {
                                "reason": "CreateContainerConfigError",
                                "message": 'secret "mine" not found',
                            }
                        },
                    }
                ],
            },
            "MissingConfig",
            "template.env",
        ),
        (
            {
                "phase": "Failed",
                "containerStatuses": [
                    {
                        "name": "training",
                        "state": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}},
                    }
                ],
            },
            "OutOfMemory",
            "resources.limits.memory",
        ),
    ],
)
def test_what_keeps_pods_from_running_is_a_condition_with_its_remedy(
    status: Object, reason: str, remedy: str
) -> None:
    world = running()
    pod = world.cluster.of(POD)[0]["metadata"]["name"]
    world.cluster.change(JOB, "small-1", status={"active": 1, "ready": 0})
    world.cluster.change(POD, pod, status=status)
    world.process.one_pass()
    assert (world.condition("Degraded")["status"], world.condition("Degraded")["reason"]) == ("True", reason)
    assert remedy in world.condition("Degraded")["message"]
    world.cluster.remove(POD, "team", pod)
    world.cluster.run_jobs()
    world.settle()
    assert world.condition("Degraded")["status"] == "False"


def test_a_quota_that_is_used_up_is_a_condition_with_its_remedy() -> None:
    world = World()
    world.apply()

    def refuse(verb: str, kind: Kind, body: Object) -> BaseException | None:
        text = "services is forbidden: exceeded quota: team, requested: count/jobs.batch=1"
        return RefusedError("create", 403, "Forbidden", text) if kind is JOB else None

    world.cluster.refuse = refuse
    assert world.process.one_pass() is not None
    assert world.condition("Degraded")["reason"] == "QuotaExceeded"
    assert "ResourceQuota" in world.condition("Degraded")["message"]
    assert world.condition("Accepted")["status"] == "True"
    world.cluster.refuse = None
    world.settle()
    assert world.status["phase"] == "Running"


def test_pods_that_the_quota_keeps_from_being_made_are_a_condition_too() -> None:
    world = World()
    world.apply()
    world.process.one_pass()
    job = world.cluster.one(JOB, "small-1")
    event = {
        "metadata": {"name": "e", "namespace": "team"},
        "involvedObject": {"kind": "Job", "uid": job["metadata"]["uid"]},
        "type": "Warning",
        "message": 'Error creating: pods "small-1-0" is forbidden: exceeded quota: team',
    }
    world.cluster.add(EVENT, event)
    world.now += 20
    first = world.process.one_pass()
    assert world.condition("Degraded")["reason"] == "QuotaExceeded"
    before = len(world.cluster.calls)
    second = world.process.one_pass()
    assert first is not None
    assert second is not None
    assert second > first, "a run that is blocked is looked at less and less often"
    assert len(world.cluster.calls) == before
    world.now += 100
    world.begin().one_pass()
    assert world.cluster.calls[before:] == [], "a fresh operator believes the status for a while"


def test_pods_that_the_api_server_refuses_are_said_and_nothing_runs() -> None:
    world = World()
    world.apply()
    text = 'Job.batch "small-1" is invalid: spec.template.spec.priorityClassName: no such class'
    world.cluster.refuse = lambda verb, kind, body: (
        RefusedError("create", 422, "Invalid", text) if kind is JOB else None
    )
    world.process.one_pass()
    assert world.condition("Accepted")["reason"] == "Refused"
    assert "priorityClassName" in world.condition("Accepted")["message"]


def test_the_manifest_of_the_pods_is_that_of_the_run_without_what_is_only_for_kubernetes() -> None:
    world = World()
    world.apply(suspend=False, template={"image": "x"})
    world.process.one_pass()
    secret = world.cluster.of(SECRET)[0]
    data = json.loads(secret["stringData"]["manifest.yaml"])
    assert parse_run(data, "x").metadata.name == "small"
    assert set(data["spec"]) == {"host", "task", "training"}
    assert secret["metadata"]["name"].startswith("esper-small-")


def test_a_run_that_is_gone_is_forgotten() -> None:
    world = running()
    world.cluster.remove(RUN, "team", "small")
    assert world.process.one_pass() is None
    assert world.process.one_pass(RunKey("team", "never")) is None
    assert manifest()["metadata"]["name"] == KEY.name


@pytest.mark.parametrize(
    "places", [Workplaces(), Workplaces(pools=("cpu",), unserved=frozenset({"cpu-avx2"}))]
)
def test_a_run_for_which_nobody_makes_kernels_says_so_until_somebody_does(places: Workplaces) -> None:
    world = World()
    served = [served_runs(places)]
    world.process.runs._served = lambda _: served[0]
    world.apply()
    world.settle()
    condition = world.condition("Served")
    assert (condition["status"], condition["reason"]) == ("False", "NoPool")
    assert "values (pools)" in condition["message"]
    assert world.status["phase"] == "Running"
    served[0] = served_runs(Workplaces(pools=("cpu",)))
    world.settle()
    assert world.condition("Served")["status"] == "True"


@pytest.mark.parametrize(("asks", "karn", "reason"), [(True, 1, None), (True, 0, "NoKarn"), (False, 0, None)])
def test_a_run_for_which_nobody_invents_though_it_asks_for_it_says_so(
    asks: bool, karn: int, reason: str | None
) -> None:
    pool = Pool(name="cpu", device="cpu", karn=karn)
    operator = Operator(Settings(pools=(pool,)), KubeApi(cast(Any, None)), NoCredentials())
    operator.office = cast(Any, object())
    world = World()
    world.process.runs._served = operator._served
    world.apply(innovation={"enabled": asks})
    world.settle()
    said = [item for item in world.status["conditions"] if item["type"] == "Served"]
    assert [item["reason"] for item in said] == ([] if reason is None else [reason])
    assert all("a karn of at least 1" in item["message"] for item in said)
    assert world.status["phase"] == "Running"


@pytest.mark.parametrize(
    "said",
    [
        {"uncountedTerminatedPods": {"succeeded": ["p1"]}},
        {"succeeded": 1},
        {"conditions": [{"type": "SuccessCriteriaMet", "status": "True"}]},
        {"failed": 1, "conditions": [{"type": "FailureTarget", "status": "True"}]},
    ],
)
def test_between_the_end_of_the_pods_and_of_the_job_it_is_not_called_starting(said: Object) -> None:
    world = running()
    (job,) = world.cluster.of(JOB)
    world.cluster.change(JOB, job["metadata"]["name"], "team", status={"active": 0, "ready": 0, **said})
    world.process.one_pass()
    assert world.status["phase"] == "Running"
    assert world.condition("Running")["reason"] == "PodsEnded"


def test_while_one_of_two_pods_is_replaced_it_is_starting_though_the_other_is_done() -> None:
    world = running(training={"steps": 60, "batchSize": 64, "workers": {"count": 2}})
    (job,) = world.cluster.of(JOB)
    world.cluster.change(
        JOB, job["metadata"]["name"], "team", status={"active": 1, "ready": 0, "succeeded": 1}
    )
    world.process.one_pass()
    assert world.status["phase"] == "Starting"

"""What the operator does with a run, in tables and driven at random through crashes and changes."""

import copy
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from esper_runtime.contracts import MorphogeneticRun, parse_run
from esper_runtime.planning import (
    EXIT_BUDGET,
    CreateAttempt,
    CreateClaim,
    CreateService,
    DeleteJob,
    DeleteRun,
    JobEnd,
    JobSeen,
    RunPlan,
    RunSeen,
    Standing,
    plan_run,
    shape_of,
)

MANIFEST: dict[str, Any] = {
    "apiVersion": "esper.dev/v1alpha1",
    "kind": "MorphogeneticRun",
    "metadata": {"name": "small"},
    "spec": {
        "host": {"builtin": "mlp"},
        "task": {"builtin": "digits"},
        "training": {"steps": 60, "batchSize": 64},
    },
}


def manifest(**spec: Any) -> MorphogeneticRun:
    data = copy.deepcopy(MANIFEST)
    data["spec"] |= spec
    return parse_run(data, "x")


PLAIN = manifest()
SEEN = RunSeen(uid="u1", name="small", spec=PLAIN, shape=shape_of(PLAIN), now=1000.0)


def job(**changes: Any) -> JobSeen:
    made = JobSeen(
        name="small-1", uid="j1", owner="u1", attempt=1, shape=SEEN.shape, created=990.0, active=1, ready=1
    )
    return replace(made, **changes)


def with_job(spec: MorphogeneticRun = PLAIN, seen: RunSeen = SEEN, **changes: Any) -> RunSeen:
    return replace(
        seen, spec=spec, shape=shape_of(spec), jobs=(job(**changes),), service=True, claim=True, attempt=1
    )


def test_a_new_run_gets_service_claim_and_its_first_attempt() -> None:
    plan = plan_run(SEEN)
    assert plan.actions == (CreateService(), CreateClaim(), CreateAttempt(1))
    assert (plan.standing, plan.attempt) == (Standing.STARTING, 1)


def test_what_is_there_already_is_not_made_again() -> None:
    assert plan_run(replace(SEEN, service=True, claim=True)).actions == (CreateAttempt(1),)
    plan = plan_run(with_job())
    assert (plan.actions, plan.standing) == ((), Standing.RUNNING)


def test_a_job_of_another_owner_under_the_name_is_left_alone_and_said() -> None:
    plan = plan_run(replace(SEEN, jobs=(job(owner="somebody"),)))
    assert (plan.actions, plan.standing) == ((), Standing.NAME_TAKEN)
    assert "small-1" in plan.message


def test_a_job_of_an_earlier_run_of_this_name_does_not_count() -> None:
    later = replace(SEEN, uid="u2", jobs=(job(owner="u1", attempt=2),))
    assert CreateAttempt(1) in plan_run(later).actions


@pytest.mark.parametrize(
    ("change", "standing"),
    [
        ({"suspended": True, "active": 0, "ready": 0}, Standing.QUEUED),
        ({"ready": 0}, Standing.PENDING),
        ({"ready": 0, "active": 0, "ending": True}, Standing.RUNNING),  # and not starting, at its end
    ],
)
def test_a_job_that_does_not_train_yet(change: dict[str, Any], standing: Standing) -> None:
    assert plan_run(with_job(**change)).standing is standing


def test_suspension_is_a_checkpoint_then_no_pod() -> None:
    suspended = manifest(suspend=True)
    first = plan_run(with_job(suspended))
    assert first.actions == (DeleteJob("small-1", "j1", "the run is suspended"),)
    ending = plan_run(with_job(suspended, deleting=True))
    assert (ending.actions, ending.standing) == ((), Standing.SUSPENDING)
    pods_left = replace(SEEN, spec=suspended, attempt=1, pods=1)
    assert plan_run(pods_left).standing is Standing.SUSPENDING
    gone = plan_run(replace(pods_left, pods=0))
    assert (gone.actions, gone.standing) == ((), Standing.SUSPENDED)


def test_resuming_waits_for_the_pods_of_the_attempt_before() -> None:
    assert plan_run(with_job(deleting=True)).actions == ()
    assert plan_run(replace(SEEN, attempt=1, pods=1, service=True, claim=True)).actions == ()
    resumed = plan_run(replace(SEEN, attempt=1, service=True, claim=True))
    assert resumed.actions == (CreateAttempt(2),)


@pytest.mark.parametrize(
    "spec",
    [
        {"template": {"image": "other"}},
        {"queueName": "team"},
        {"training": {"steps": 60, "batchSize": 64, "workers": {"count": 2}}},
    ],
)
def test_what_pods_are_made_of_needs_another_attempt(spec: dict[str, Any]) -> None:
    seen = replace(with_job(), spec=manifest(**spec), shape=shape_of(manifest(**spec)))
    plan = plan_run(seen)
    assert [type(action) for action in plan.actions] == [DeleteJob]
    assert plan.standing is Standing.REPLACING


@pytest.mark.parametrize(
    "spec", [{"training": {"steps": 90, "batchSize": 64}}, {"ttlSecondsAfterFinished": 5}]
)
def test_other_changes_restart_nothing(spec: dict[str, Any]) -> None:
    seen = replace(with_job(), spec=manifest(**spec), shape=shape_of(manifest(**spec)))
    assert plan_run(seen).actions == ()


@pytest.mark.parametrize(
    ("code", "reason"),
    [(2, "WrongInput"), (EXIT_BUDGET, "BudgetUsed"), (137, "OutOfMemory"), (1, "BackoffLimitExceeded")],
)
def test_a_failure_is_told_with_its_remedy(code: int, reason: str) -> None:
    plan = plan_run(with_job(ended=JobEnd.FAILED, exit_code=code, reason="BackoffLimitExceeded"))
    assert (plan.standing, plan.reason) == (Standing.FAILED, reason)
    assert plan.message
    assert plan.actions == (), "the Job goes only after its end is recorded"


def test_the_job_goes_once_its_end_is_recorded_and_the_run_when_its_time_is_over() -> None:
    done = replace(with_job(ended=JobEnd.COMPLETE), ended=JobEnd.COMPLETE, ended_at=990.0)
    assert [type(action) for action in plan_run(done).actions] == [DeleteJob]
    short = replace(done, spec=manifest(ttlSecondsAfterFinished=60), jobs=())
    assert plan_run(short).look_again == pytest.approx(50)
    assert plan_run(replace(short, now=1051.0)).actions == (DeleteRun(),)


def test_time_limits_end_a_run_and_say_when_to_look_again() -> None:
    limited = manifest(deadlines={"activeSeconds": 100, "pendingSeconds": 30})
    going = replace(with_job(limited), started_at=990.0)
    assert plan_run(going).look_again == pytest.approx(90)
    over = plan_run(replace(going, now=1090.0))
    assert (over.standing, over.reason) == (Standing.FAILED, "DeadlineExceeded")
    assert [type(action) for action in over.actions] == [DeleteJob]
    waiting = replace(with_job(limited, ready=0), started_at=990.0)
    assert plan_run(waiting).look_again == pytest.approx(20)
    assert plan_run(replace(waiting, now=1020.0)).reason == "PendingDeadlineExceeded"


def test_restarts_are_bounded() -> None:
    limited = manifest(retry={"restarts": 3})
    assert plan_run(replace(with_job(limited), restarts=3)).standing is Standing.RUNNING
    assert plan_run(replace(with_job(limited), restarts=4)).reason == "TooManyRestarts"


def test_a_refused_manifest_starts_nothing_and_ends_what_runs() -> None:
    assert plan_run(replace(SEEN, spec=None)).actions == ()
    assert [type(a) for a in plan_run(replace(with_job(), spec=None)).actions] == [DeleteJob]


@dataclass
class Cluster:
    """What the API server and the controllers hold of one run, and of one before it of the same name."""

    spec: MorphogeneticRun = PLAIN
    uid: str = "u1"
    made: int = 0
    jobs: dict[str, JobSeen] = field(default_factory=dict)
    service: str | None = None
    claim: str | None = None
    status_attempt: int = 0
    ended: JobEnd | None = None

    def seen(self) -> RunSeen:
        return RunSeen(
            uid=self.uid,
            name="small",
            spec=self.spec,
            shape=shape_of(self.spec),
            now=1000.0,
            jobs=tuple(self.jobs.values()),
            pods=sum(j.active for j in self.jobs.values() if j.owner == self.uid),
            service=self.service == self.uid,
            claim=self.claim == self.uid,
            attempt=self.status_attempt,
            ended=self.ended,
        )

    def carry_out(self, action: Any, plan: RunPlan) -> None:
        match action:
            case CreateService():
                self.service = self.service or self.uid
            case CreateClaim():
                self.claim = self.claim or self.uid
            case CreateAttempt(number):
                name = f"small-{number}"
                if name not in self.jobs:  # else: it exists already
                    self.made += 1
                    self.jobs[name] = JobSeen(
                        name, f"j{self.made}", self.uid, number, shape_of(self.spec), 1000.0, active=1
                    )
            case DeleteJob(name, uid, _):
                found = self.jobs.get(name)
                if found is not None and found.uid == uid:
                    self.jobs[name] = replace(found, deleting=True)

    def record(self, plan: RunPlan) -> None:
        self.status_attempt = max(self.status_attempt, plan.attempt)
        if plan.standing is Standing.COMPLETE:
            self.ended = JobEnd.COMPLETE
        if plan.standing is Standing.FAILED:
            self.ended = JobEnd.FAILED


class Operator(RuleBasedStateMachine):
    """The operator's passes, each cut short anywhere, among changes by people and controllers."""

    def __init__(self) -> None:
        super().__init__()
        self.cluster = Cluster()

    @rule(cut=st.integers(0, 5))
    def one_pass(self, cut: int) -> None:
        plan = plan_run(self.cluster.seen())
        for action in plan.actions[:cut]:
            self.cluster.carry_out(action, plan)
        if cut > len(plan.actions):
            self.cluster.record(plan)

    @rule(suspend=st.booleans(), image=st.sampled_from(["a", "b"]))
    def a_person_changes_the_spec(self, suspend: bool, image: str) -> None:
        self.cluster.spec = manifest(suspend=suspend, template={"image": image})

    @rule()
    def pods_become_ready(self) -> None:
        for name, j in self.cluster.jobs.items():
            if j.active and not j.deleting:
                self.cluster.jobs[name] = replace(j, ready=1)

    @rule()
    def foreground_deletion_finishes(self) -> None:
        self.cluster.jobs = {name: j for name, j in self.cluster.jobs.items() if not j.deleting}

    @rule(end=st.sampled_from(JobEnd))
    def a_job_ends(self, end: JobEnd) -> None:
        for name, j in self.cluster.jobs.items():
            if j.ready and not j.deleting:
                self.cluster.jobs[name] = replace(j, ended=end, active=0, ready=0, exit_code=0)

    @rule()
    def the_run_is_deleted_and_made_again(self) -> None:
        number = int(self.cluster.uid[1:]) + 1
        jobs = {name: replace(j, deleting=True) for name, j in self.cluster.jobs.items()}
        made = self.cluster.made
        self.cluster = Cluster(uid=f"u{number}", jobs=jobs, made=made)

    @invariant()
    def at_most_one_trainer_of_a_run_lives(self) -> None:
        own = [j for j in self.cluster.jobs.values() if j.owner == self.cluster.uid]
        assert sum(j.active > 0 for j in own) <= 1

    def teardown(self) -> None:
        """Left alone, it comes to rest: nothing more to do, and the run where its spec wants it."""
        for _ in range(12):
            plan = plan_run(self.cluster.seen())
            for action in plan.actions:
                self.cluster.carry_out(action, plan)
            self.cluster.record(plan)
            self.foreground_deletion_finishes()
            self.pods_become_ready()
        plan = plan_run(self.cluster.seen())
        assert plan.actions == ()
        wanted = Standing.SUSPENDED if self.cluster.spec.spec.suspend else Standing.RUNNING
        assert plan.standing in (wanted, Standing.COMPLETE, Standing.FAILED)


Operator.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestOperator = Operator.TestCase

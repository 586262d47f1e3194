"""Each safeguard is held by a test: without it, that test is red.

The safeguard is taken out of the running code, line by line of its source, and the named test is run.
"""

from collections.abc import Callable, Iterator

import pytest

from benchmarks.cluster_server import ClusterServer
from tests.oona import test_accounts as accounts
from tests.operator import test_children as children
from tests.operator import test_kills as kills
from tests.operator import test_kube as kube
from tests.operator import test_parts as parts
from tests.operator import test_runs as runs
from tests.operator.mutation import mutated
from tests.planning import test_runs as planning

Named = Callable[[], None]
RED = (AssertionError, LookupError, StopIteration, pytest.fail.Exception)

SAFEGUARDS: dict[str, tuple[str, str, str, Named]] = {
    # what is taken out: module, its text, what stands in its place, the test that turns red
    "failure policy: resumption uses up no retry": (
        "esper_operator.children",
        '"values": [75, 76]',
        '"values": [79]',
        children.test_the_failure_policy_spends_no_retry_on_resumption_and_disruption_and_stops_what_cannot_work,
    ),
    "failure policy: disruption uses up no retry": (
        "esper_operator.children",
        '"type": "DisruptionTarget"',
        '"type": "Ready"',
        children.test_the_failure_policy_spends_no_retry_on_resumption_and_disruption_and_stops_what_cannot_work,
    ),
    "failure policy: what cannot work is not tried again": (
        "esper_operator.children",
        '"values": [2, EXIT_BUDGET]',
        '"values": [EXIT_BUDGET]',
        children.test_the_failure_policy_spends_no_retry_on_resumption_and_disruption_and_stops_what_cannot_work,
    ),
    "pods are replaced only once they have failed": (
        "esper_operator.children",
        '"podReplacementPolicy": "Failed"',
        '"podReplacementPolicy": "TerminatingOrFailed"',
        children.test_the_failure_policy_spends_no_retry_on_resumption_and_disruption_and_stops_what_cannot_work,
    ),
    "owner's uid of what is there already": (
        "esper_operator.runs",
        "if controller_of(found) != uid:",
        "if False:",
        runs.test_names_that_are_taken_are_left_alone_and_said_and_used_once_they_are_free,
    ),
    "owner's uid of Jobs": (
        "esper_runtime.planning.runs",
        "own = [job for job in seen.jobs if job.owner == seen.uid]",
        "own = list(seen.jobs)",
        planning.test_a_job_of_another_owner_under_the_name_is_left_alone_and_said,
    ),
    "uid of a run whose status is written": (
        "esper_operator.writer",
        'if known is None or known["metadata"]["uid"] != uid:',
        "if known is None:",
        parts.test_a_status_meets_a_change_of_the_run_and_is_written_and_never_to_another_run_of_the_name,
    ),
    "uid as the condition of a deletion": (
        "esper_operator.kube",
        '"preconditions": {"uid": uid},',
        "",
        kube.test_a_deletion_says_which_object_it_means_and_what_becomes_of_its_children,
    ),
    "propagation policy: asked for": (
        "esper_operator.runs",
        'name, job_uid, "Foreground")',
        'name, job_uid, "Background")',
        runs.test_suspension_ends_only_when_no_pod_is_left_and_resuming_is_the_next_attempt,
    ),
    "propagation policy: sent": (
        "esper_operator.kube",
        '"propagationPolicy": propagation,',
        "",
        kube.test_a_deletion_says_which_object_it_means_and_what_becomes_of_its_children,
    ),
    "the API is asked before an attempt is made": (
        "esper_operator.runs",
        "if CreateAttempt(number) not in now.plan.actions:",
        "if False:",
        kills.test_an_old_view_does_not_make_a_second_trainer,
    ),
    "the end is recorded before anything goes": (
        "esper_operator.runs",
        "if not view.plan.actions or _ends(view) or",
        "if not view.plan.actions or",
        runs.test_a_limit_that_passed_is_recorded_before_anything_is_removed_and_nothing_starts_anew,
    ),
    "another's Lease is left to run out": (
        "esper_operator.lease",
        "if holder and now - self._seen[1] < lasts:",
        "if False:",
        parts.test_one_of_two_holds_the_lease_and_the_other_takes_it_only_when_it_has_run_out,
    ),
}

ON_THE_BUS: dict[str, tuple[str, str, str, Callable[[ClusterServer], None]]] = {
    "inbox prefix: permission": (
        "esper_runtime.oona.accounts",
        'f"{inbox_of(key.public)}.>"',
        '"_INBOX.>"',
        accounts.test_a_credential_hears_no_inbox_but_its_own,
    ),
    "inbox prefix: client": (
        "esper_runtime.oona.client",
        'f"{inbox_of(mine.user)}.{secrets.token_hex(8)}"',
        '"_INBOX"',
        accounts.test_a_credential_hears_no_inbox_but_its_own,
    ),
}


@pytest.fixture(scope="module")
def bus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterServer]:
    with ClusterServer(tmp_path_factory.mktemp("bus")) as server:
        accounts.kept(server, accounts.prepared)
        yield server


@pytest.mark.parametrize("name", SAFEGUARDS)
def test_without_it_the_named_test_is_red(name: str) -> None:
    module, old, new, named = SAFEGUARDS[name]
    named()
    with mutated(module, old, new), pytest.raises(RED):
        named()
    named()


@pytest.mark.parametrize("name", ON_THE_BUS)
def test_without_it_the_named_test_is_red_on_a_real_bus(name: str, bus: ClusterServer) -> None:
    module, old, new, named = ON_THE_BUS[name]
    with mutated(module, old, new), pytest.raises(RED):
        named(bus)
    named(bus)

"""A person's blueprint on a cluster: checked, entered, forged and validated without a run; then archived."""

import asyncio
import copy
from typing import Any

import pytest

from esper_operator.kube import BLUEPRINT, EVENT
from esper_operator.pools import Pool
from esper_operator.settings import Settings
from esper_runtime.blueprint import canonical_id, catalogue
from esper_runtime.contracts import BusError, FieldReport, KernelState, Origin
from tests.operator.forge_world import FACTS, MLP, POOL, ForgeWorld, blueprint

ID = canonical_id(MLP)


def applied(world: ForgeWorld | None = None) -> ForgeWorld:
    """A world in which a blueprint was applied and everything has come to rest."""
    world = world or ForgeWorld()
    world.apply(blueprint())
    world.settle()
    return world


def test_a_blueprint_applied_by_hand_is_forged_and_validated_without_any_run() -> None:
    world = applied()
    status = world.status()
    assert (status["phase"], status["id"], status["kernelsSummary"]) == ("Validated", ID, "1/1")
    assert world.library.entries[ID].origin == "team/mine"
    (kernel,) = world.library.kernels.values()
    assert kernel.spec.toolchain == FACTS.toolchains[kernel.spec.pipeline]
    assert kernel.spec.target == FACTS.target
    said = [(item["type"], item["status"], item["reason"]) for item in status["conditions"]]
    assert said == [
        ("Valid", "True", "Valid"),
        ("Compiled", "True", "Compiled"),
        ("Evaluated", "True", "Validated"),
        ("Served", "True", "Served"),
    ]
    told = [event["reason"] for event in world.cluster.of(EVENT)]
    assert told == ["Pending", "Forging", "Validated"]


def test_a_pass_over_what_has_not_changed_writes_nothing_not_even_by_another_operator() -> None:
    world = applied()
    world.cluster.calls.clear()
    world.look()
    world.begin()
    world.look()
    assert [call for call in world.cluster.calls if call.writes] == []


def _without_tail(graph: Any) -> None:
    graph["nodes"] = [node for node in graph["nodes"] if node["id"] != graph["output"]]


def _unknown_operator(graph: Any) -> None:
    graph["nodes"][0]["op"] = "lineer"


def _unknown_attribute(graph: Any) -> None:
    graph["nodes"][0]["attributes"]["widht"] = 3


def _no_such_input(graph: Any) -> None:
    graph["nodes"][0]["inputs"] = ["nobody"]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_without_tail, "reference"),
        (_unknown_operator, "lineer"),
        (_unknown_attribute, "widht"),
        (_no_such_input, "nobody"),
    ],
)
def test_a_graph_that_cannot_work_is_refused_with_what_where_and_how_to_mend(spoil: Any, words: str) -> None:
    world = ForgeWorld()
    body = blueprint()
    spoil(body["spec"]["graph"])
    world.apply(body)
    world.settle()
    assert world.status()["phase"] == "Invalid"
    valid = world.condition("Valid")
    assert (valid["status"], valid["reason"]) == ("False", "Invalid")
    assert valid["message"].startswith("spec.graph: ")
    assert words in valid["message"]
    assert "under another name" in valid["message"]
    assert world.library.entries == {}
    assert world.jobs() == []


def test_the_same_graph_under_two_names_is_archived_only_when_the_last_one_goes() -> None:
    world = applied()
    world.apply(blueprint("other", namespace="elsewhere"))
    world.settle()
    assert world.library.entered[ID] == 1
    world.cluster.remove(BLUEPRINT, "team", "mine")
    world.settle()
    assert world.library.entries[ID].archived is None
    world.cluster.remove(BLUEPRINT, "elsewhere", "other")
    world.settle()
    assert world.library.entries[ID].archived == "its resource was deleted: elsewhere/other"


def test_a_new_resource_brings_back_what_a_deletion_has_archived_but_not_what_a_person_has() -> None:
    world = applied()
    world.cluster.remove(BLUEPRINT, "team", "mine")
    world.apply(blueprint())
    world.settle()
    assert world.library.entries[ID].archived is None
    archived = world.library.entries[ID].model_copy(update={"archived": "of no use"})
    world.library.entries[ID] = archived
    world.settle()
    assert world.library.entries[ID] == archived
    assert world.condition("Served")["message"] == "archived: of no use"


def test_absence_orders_nothing() -> None:
    """A resource that a list lacks, though no deletion was seen: its blueprint stays."""
    world = applied()
    world.deaf = True
    world.cluster.remove(BLUEPRINT, "team", "mine")
    world.relist()
    world.settle()
    world.begin()
    world.settle()
    assert world.library.entries[ID].archived is None


def died_before_it_archived() -> tuple[ForgeWorld, str]:
    """A world whose operator saw a deletion while the library was away, and is dead; its mark."""
    world = applied()
    world.forge.deletions.begin()
    world.mark()
    world.library.ready = False
    world.cluster.remove(BLUEPRINT, "team", "mine")
    world.passes()
    mark = world.mark()
    world.begin()
    world.library.ready = True
    world.settle()
    assert world.library.entries[ID].archived is None, "absence alone orders nothing"
    return world, mark


def test_a_deletion_that_an_operator_did_not_live_to_carry_out_is_told_to_the_next_one() -> None:
    world, mark = died_before_it_archived()
    asyncio.run(world.forge.catch_up(mark))
    world.settle()
    assert world.library.entries[ID].archived == "its resource was deleted: team/mine"
    assert int(world.mark()) > int(mark)


def test_a_deletion_while_no_operator_ran_of_a_graph_that_is_there_again_orders_nothing() -> None:
    world, mark = died_before_it_archived()
    world.apply(blueprint("again"))
    asyncio.run(world.forge.catch_up(mark, ["team"]))
    world.settle()
    assert world.library.entries[ID].archived is None


def test_a_deletion_that_the_api_server_has_forgotten_orders_nothing_and_the_mark_goes_on() -> None:
    world, mark = died_before_it_archived()
    world.cluster.remembers = int(mark) + 1
    asyncio.run(world.forge.catch_up(mark))
    world.settle()
    assert world.library.entries[ID].archived is None
    assert int(world.mark()) > int(mark)


def test_without_a_mark_the_api_server_is_not_asked() -> None:
    world = applied()
    asyncio.run(world.forge.catch_up(""))
    assert [call for call in world.cluster.calls if call.verb == "watch"] == []


def test_a_deletion_of_what_was_not_known_orders_nothing() -> None:
    world = applied()
    body = copy.deepcopy(world.cluster.one(BLUEPRINT, "mine"))
    body["metadata"]["uid"] = "another"
    world.forge.hear(BLUEPRINT, "DELETED", body)
    world.settle()
    assert world.library.entries[ID].archived is None


def test_a_deletion_that_the_api_does_not_confirm_orders_nothing() -> None:
    world = applied()
    world.forge.hear(BLUEPRINT, "DELETED", copy.deepcopy(world.cluster.one(BLUEPRINT, "mine")))
    world.look()
    assert world.library.entries[ID].archived is None


@pytest.mark.parametrize("origin", [Origin.CATALOGUE, Origin.GENERATED, Origin.MUTATED])
def test_what_the_system_has_made_is_not_archived_with_a_persons_copy(origin: Origin) -> None:
    world = applied()
    entry = world.library.entries[ID]
    world.library.entries[ID] = entry.model_copy(update={"origin": origin.value})
    world.cluster.remove(BLUEPRINT, "team", "mine")
    world.settle()
    assert world.library.entries[ID].archived is None


def test_while_the_library_is_away_the_status_says_so_and_stays_and_a_deletion_is_kept_for_later() -> None:
    world = applied()
    world.apply(blueprint("other", catalogue()["mlp-4"]))
    world.library.ready = False
    world.cluster.calls.clear()
    world.look()
    assert [call for call in world.cluster.calls if call.kind == "Blueprint" and call.name == "mine"] == []
    world.now += 10
    world.relist()
    world.look()
    assert world.status()["phase"] == "Validated"
    assert (world.condition("Served")["status"], world.condition("Served")["reason"]) == (
        "Unknown",
        "LibraryAway",
    )
    assert world.status("other")["phase"] == "Pending"
    world.cluster.remove(BLUEPRINT, "team", "mine")
    world.passes()
    world.library.ready = True
    world.settle()
    assert world.library.entries[ID].archived is not None
    assert world.status("other")["phase"] == "Validated"


def test_after_the_bus_was_wiped_the_same_ids_are_made_again_and_no_resource_is_deleted() -> None:
    world = applied()
    before = world.library.records().keys(), world.kernels()
    world.library.lose_everything()
    world.cluster.calls.clear()
    world.look()
    assert world.status()["phase"] == "Forging"
    compiled = world.condition("Compiled")
    assert (compiled["status"], compiled["reason"]) == ("False", "MadeAgain")
    world.settle()
    assert (world.library.records().keys(), world.kernels()) == before
    assert world.status()["phase"] == "Validated"
    assert world.condition("Compiled")["status"] == "True"
    gone = [call for call in world.cluster.calls if call.verb == "delete" and call.kind != "Job"]
    assert gone == []


def test_what_the_library_does_not_show_yet_is_said_once_and_again_only_after_a_while() -> None:
    world = applied()
    graph = catalogue()["mlp-4"]
    world.library.hidden.add(canonical_id(graph))

    def said(verb: str) -> int:
        return sum(call.verb == verb for call in world.cluster.calls)

    def look(seconds: float) -> None:
        world.now += seconds
        world.forge.look_at_all()
        world.look()

    enters = said("enter")
    for name in ("one", "two"):  # the same graph, in two resources
        world.apply(blueprint(name, graph))
    for _ in range(3):
        look(1)
    assert said("enter") == enters + 1
    look(30)
    assert said("enter") == enters + 2
    known, wishes = set(world.library.kernels), said("wish")
    world.library.hidden.clear()
    world.look()
    world.library.hidden |= set(world.library.kernels) - known
    assert world.library.hidden
    for _ in range(3):
        look(1)
    assert said("wish") == wishes + 1


def test_what_the_library_did_not_take_is_said_again_at_once() -> None:
    world = ForgeWorld()
    taken = world.library.enter
    refusals = [BusError("the bus is away")]

    async def enter(*given: Any, **how: Any) -> str:
        if refusals:
            raise refusals.pop()
        return await taken(*given, **how)

    world.library.enter = enter  # type: ignore[method-assign]
    world.apply(blueprint())
    world.look()
    assert refusals == []
    world.look()
    assert ID in world.library.entries


def test_rejected_and_quarantined_kernels_show_with_their_reasons() -> None:
    world = applied()
    (kernel,) = world.library.kernels
    world.library.settle(kernel, KernelState.QUARANTINED, "it failed in 2 of 2 runs")
    world.look()
    assert world.status()["phase"] == "Quarantined"
    assert world.condition("Quarantined")["message"] == f"{kernel}: it failed in 2 of 2 runs"
    world.library.settle(kernel, KernelState.REJECTED, "exact: no")
    world.look()
    assert world.status()["phase"] == "Rejected"
    evaluated = world.condition("Evaluated")
    assert (evaluated["status"], evaluated["reason"]) == ("True", "Rejected")
    assert evaluated["message"] == f"{kernel}: exact: no"
    assert world.condition("Quarantined")["status"] == "False"
    world.library.settle(kernel, KernelState.VALIDATED)
    world.look()
    assert (world.status()["phase"], world.status()["kernels"]) == ("Validated", {"Validated": 1})


def test_a_blueprint_whose_kernel_nobody_could_make_is_rejected_without_being_evaluated() -> None:
    world = applied()
    (kernel,) = world.library.kernels
    world.library.settle(kernel, KernelState.REJECTED, "given up after 3 workers")
    world.library.kernels[kernel] = world.library.kernels[kernel].model_copy(update={"digest": None})
    world.look()
    assert world.status()["phase"] == "Rejected"
    for kind in ("Compiled", "Evaluated"):
        said = world.condition(kind)
        assert (said["status"], said["reason"]) == ("False", "Rejected")
        assert said["message"] == f"{kernel}: given up after 3 workers"


def test_a_score_stands_in_the_status_once_two_trainings_have_reported() -> None:
    world = applied()
    (kernel,) = world.library.kernels.values()
    for index, contribution in enumerate((0.01, 0.03)):
        assert "score" not in world.status()
        world.library.said.append(
            FieldReport(
                kernel=kernel.kernel,
                digest=kernel.digest or "",
                blueprint=ID,
                run=f"team/run-{index}",
                seed="s1",
                slot="body",
                outcome="Fossilized",
                steps=10,
                contribution=contribution,
                parameters=5,
            )
        )
        world.look()
    score = world.status()["score"]
    assert (round(score["mean"], 6), score["count"]) == (0.02, 2)
    assert score["low"] < 0.02 < score["high"]


@pytest.mark.parametrize("pools", [(), (Pool(name="cpu", device="cpu", tezzeret=1, urabrask=0),)])
def test_without_a_pool_that_makes_and_tests_the_condition_says_what_to_do(pools: tuple[Pool, ...]) -> None:
    world = ForgeWorld(Settings(pools=pools))
    world.apply(blueprint())
    world.settle()
    served = world.condition("Served")
    assert (served["status"], served["reason"]) == ("False", "NoPool")
    assert "values (pools)" in served["message"]
    assert world.jobs() == []


def test_a_target_that_no_pool_serves_is_named() -> None:
    world = applied()
    (kernel,) = world.library.kernels.values()
    other = kernel.spec.model_copy(
        update={"target": kernel.spec.target.model_copy(update={"arch": "avx2"}), "flags": ("x",)}
    )
    world.library.kernels[other.kernel_id] = kernel.model_copy(
        update={"kernel": other.kernel_id, "spec": other, "state": KernelState.PENDING, "digest": None}
    )
    world.look()
    served = world.condition("Served")
    assert (served["status"], served["reason"]) == ("False", "NoPool")
    assert "cpu-avx2-torch-2-13-0" in served["message"]
    assert "esper-tezzeret-cpu-1" not in world.jobs()


def test_a_pipeline_that_no_pool_offers_is_named() -> None:
    world = ForgeWorld()
    world.apply(blueprint(pipelines=["fast", "aggressive"]))
    world.settle()
    assert world.status()["phase"] == "Validated"
    served = world.condition("Served")
    assert (served["status"], served["reason"]) == ("False", "NoPipeline")
    assert "aggressive" in served["message"]


def test_a_release_without_a_bus_says_so() -> None:
    world = ForgeWorld(bus=False)
    world.apply(blueprint())
    world.passes()
    assert world.condition("Served")["reason"] == "NoBus"
    assert world.status()["phase"] == "Pending"


def test_blueprints_of_namespaces_that_are_not_watched_are_left_alone() -> None:
    world = ForgeWorld(Settings(pools=(POOL,), watch=("team",)))
    world.apply(blueprint())
    world.apply(blueprint("foreign", catalogue()["mlp-4"], namespace="elsewhere"))
    world.settle()
    assert world.status()["phase"] == "Validated"
    assert world.status("foreign", "elsewhere") == {}
    assert list(world.library.entries) == [ID]

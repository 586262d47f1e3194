"""The library shown as resources: the best kernels and the system's blueprints, removed by record alone."""

import copy

from esper_operator.kube import BLUEPRINT, KERNEL
from esper_runtime.blueprint import canonical_id, catalogue
from esper_runtime.contracts import BlueprintEntry, KernelState, Origin
from esper_runtime.planning import MOST_SHOWN, Merit, blueprints_shown, kernels_shown
from tests.operator.forge_world import MLP, ForgeWorld, blueprint

ID = canonical_id(MLP)


def made(world: ForgeWorld, name: str, origin: Origin = Origin.GENERATED) -> str:
    """A blueprint that the system has entered."""
    graph = catalogue()[name]
    identity = canonical_id(graph)
    world.library.entries[identity] = BlueprintEntry(
        blueprint=identity, graph=graph, origin=origin.value, entered="2026-01-01T00:00:00.000+00:00"
    )
    return identity


def shown(world: ForgeWorld) -> list[str]:
    bodies = [body["metadata"] for body in world.cluster.of(BLUEPRINT)]
    return sorted(
        head["name"] for head in bodies if head.get("labels", {}).get("esper.dev/source") == "library"
    )


def test_a_kernel_is_shown_with_state_digest_and_the_figures_of_its_report() -> None:
    world = ForgeWorld()
    world.apply(blueprint())
    world.settle()
    (body,) = world.cluster.of(KERNEL)
    (record,) = world.library.kernels.values()
    assert body["metadata"]["namespace"] == "esper"
    assert body["metadata"]["name"] == record.kernel
    assert body["metadata"]["ownerReferences"] == [world.owner], "it goes with the release"
    assert body["spec"]["digest"] == record.digest
    assert body["spec"]["uri"].endswith(record.digest or "?")
    status = body["status"]
    assert (status["phase"], status["speed"], status["risk"]) == ("Validated", "1.00x", 0.1)
    assert status["numbers"]["speedup"] == 1.0


def test_a_kernel_goes_when_its_blueprint_is_archived_and_not_when_the_library_is_away() -> None:
    world = ForgeWorld()
    world.apply(blueprint())
    world.settle()
    before = world.kernels()
    world.library.ready = False
    world.look()
    assert world.kernels() == before
    world.library.ready = True
    world.library.entries[ID] = world.library.entries[ID].model_copy(update={"archived": "of no use"})
    world.look()
    assert world.kernels() == []


def test_a_kernel_that_the_library_has_lost_stays_and_says_so() -> None:
    world = ForgeWorld()
    world.apply(blueprint())
    world.settle()
    world.library.kernels.clear()
    world.library.incarnation = "two"
    world.cluster.remove(BLUEPRINT, "team", "mine")  # else it would be wished for again
    world.settle()
    (body,) = world.cluster.of(KERNEL)
    kept = next(item for item in body["status"]["conditions"] if item["type"] == "Kept")
    assert (kept["status"], kept["reason"]) == ("False", "Lost")


def test_a_kernel_that_was_rejected_or_failed_in_trainings_says_so_until_it_is_no_longer_so() -> None:
    world = ForgeWorld()
    world.apply(blueprint())
    world.settle()
    (kernel,) = world.library.kernels

    def conditions() -> dict[str, str]:
        (body,) = world.cluster.of(KERNEL)
        return {item["type"]: item["status"] for item in body["status"]["conditions"]}

    assert conditions() == {"Kept": "True", "Compiled": "True", "Validated": "True"}
    for state in (KernelState.REJECTED, KernelState.QUARANTINED):
        world.library.settle(kernel, state, "why")
        world.settle()
        assert conditions()["Validated"] == "False"
        assert conditions()[state.value] == "True"
    assert conditions()["Rejected"] == "False"


def test_what_somebody_changed_or_removed_by_hand_is_put_right() -> None:
    world = ForgeWorld()
    world.apply(blueprint())
    world.settle()
    (body,) = copy.deepcopy(world.cluster.of(KERNEL))
    world.cluster.change(KERNEL, body["metadata"]["name"], "esper", spec=body["spec"] | {"bytes": 1})
    world.settle()
    assert world.cluster.of(KERNEL)[0]["spec"] == body["spec"]
    world.cluster.remove(KERNEL, "esper", body["metadata"]["name"])
    world.settle()
    assert world.cluster.of(KERNEL)[0]["spec"] == body["spec"]
    assert world.library.entries[ID].archived is None


def test_the_systems_blueprints_are_shown_and_never_read_back() -> None:
    world = ForgeWorld()
    generated = made(world, "mlp-4")
    mutated = made(world, "mlp-8", Origin.MUTATED)
    made(world, "mlp-16", Origin.CATALOGUE)
    world.settle()
    assert shown(world) == sorted([generated, mutated])
    assert world.jobs() == [], "they are not wished for"
    world.cluster.remove(BLUEPRINT, "esper", generated)
    world.settle()
    assert world.library.entries[generated].archived is None
    assert shown(world) == sorted([generated, mutated]), "it is shown again"
    world.library.entries[mutated] = world.library.entries[mutated].model_copy(update={"archived": "worse"})
    world.settle()
    assert shown(world) == [generated]
    assert world.library.entered == {}


def test_a_persons_resource_that_has_the_name_is_not_touched() -> None:
    world = ForgeWorld()
    generated = made(world, "mlp-4")
    mine = world.apply(blueprint(generated, namespace="esper"))
    world.settle()
    assert world.cluster.one(BLUEPRINT, generated, "esper")["spec"] == mine["spec"]
    assert shown(world) == []


def test_only_the_best_are_shown_and_what_drops_out_is_removed() -> None:
    world = ForgeWorld()
    for graph in list(catalogue().values())[:5]:
        world.apply(blueprint(graph.name, graph))
    world.settle()
    records = world.library.records()
    merits = {kernel: Merit(float(number)) for number, kernel in enumerate(sorted(records))}
    best = kernels_shown(records.values(), world.library.blueprints(), merits, most=2)
    assert best == sorted(records)[:-3:-1]
    worst = sorted(records)[0]
    world.library.settle(worst, KernelState.REJECTED, "no")
    rank = kernels_shown(world.library.records().values(), world.library.blueprints(), {}, most=5)
    assert rank[-1] == worst, "what passed goes first"
    used = records[sorted(records)[1]].spec.blueprint
    assert kernels_shown(records.values(), world.library.blueprints(), merits, {used}, most=2) == [
        sorted(records)[1],
        *best,
    ]


def test_a_kernel_past_the_limit_loses_its_resource() -> None:
    world = ForgeWorld()
    world.apply(blueprint())
    world.settle()
    (first,) = world.library.kernels.values()
    for number in range(MOST_SHOWN):
        spec = first.spec.model_copy(update={"flags": (str(number),)})
        world.library.kernels[spec.kernel_id] = first.model_copy(
            update={"kernel": spec.kernel_id, "spec": spec}
        )
    worst = sorted(world.library.kernels)[-1]
    for kernel in world.library.kernels:
        world.library.settle(kernel, KernelState.VALIDATED, speedup=1.0 if kernel == worst else 2.0)
    world.look()
    assert len(world.kernels()) == MOST_SHOWN
    assert worst not in world.kernels()
    better = next(kernel for kernel in world.kernels())
    world.library.settle(worst, KernelState.VALIDATED, speedup=3.0)
    world.library.settle(better, KernelState.SUPERSEDED)
    world.look()
    assert len(world.kernels()) == MOST_SHOWN
    assert worst in world.kernels()
    assert better not in world.kernels()


def test_blueprints_are_shown_by_worth_then_by_age() -> None:
    world = ForgeWorld()
    names = [made(world, name) for name in ("mlp-4", "mlp-8", "mlp-16")]
    later = world.library.entries[names[2]].model_copy(update={"entered": "2026-02-01T00:00:00.000+00:00"})
    world.library.entries[names[2]] = later
    entries = world.library.blueprints()
    assert blueprints_shown(entries, {names[1]: Merit(1.5)}, most=2) == [names[1], names[2]]
    assert blueprints_shown(entries, {}, {names[0]}, most=1) == [names[0], names[2]]

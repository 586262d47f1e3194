import pytest

from esper_runtime.blueprint import canonical_id, catalogue
from esper_runtime.contracts import (
    Blueprint,
    BlueprintEntry,
    InputError,
    KernelRecord,
    KernelState,
    Provenance,
)
from esper_runtime.urza import lineage
from tests.urza.sayings import kernel_spec

PARENT, CHILD = list(catalogue().values())[:2]


def entry(graph: Blueprint) -> BlueprintEntry:
    return BlueprintEntry(blueprint=canonical_id(graph), graph=graph, origin="User", entered="2026")


def record(blueprint: str, flag: str, by: str | None = None) -> KernelRecord:
    spec = kernel_spec(blueprint, flags=(flag,))
    state = KernelState.SUPERSEDED if by else KernelState.VALIDATED
    return KernelRecord(kernel=spec.kernel_id, spec=spec, state=state, superseded_by=by)


def test_parents_children_kernels_and_successors_are_found_from_either_end() -> None:
    parent = canonical_id(PARENT)
    child = CHILD.model_copy(update={"provenance": Provenance(origin="Mutated", parents=(parent,))})
    blueprints = {one.blueprint: one for one in (entry(PARENT), entry(child))}
    new = record(parent, "new")
    old = record(parent, "old", by=new.kernel)
    records = {one.kernel: one for one in (new, old, record(canonical_id(child), "x"))}
    of_parent = lineage(parent, blueprints, records)
    assert of_parent.children == (canonical_id(child),)
    assert of_parent.kernels == tuple(sorted((old.kernel, new.kernel)))
    assert lineage(canonical_id(child), blueprints, records).parents == (parent,)
    assert lineage(old.kernel, blueprints, records).superseded_by == new.kernel
    assert lineage(new.kernel, blueprints, records).supersedes == (old.kernel,)


def test_an_unknown_id_is_refused_with_the_nearest_known() -> None:
    known = canonical_id(PARENT)
    with pytest.raises(InputError, match=known):
        lineage(known[:-1] + "x", {known: entry(PARENT)}, {})

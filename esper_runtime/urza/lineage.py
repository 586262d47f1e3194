"""Where a blueprint or a kernel comes from, and what came of it."""

from collections.abc import Mapping
from dataclasses import dataclass

from esper_runtime.contracts import BlueprintEntry, InputError, KernelRecord, nearest


@dataclass(frozen=True)
class Lineage:
    """The relations of one blueprint or kernel; all are ids, sorted.

    Attributes:
        id: of the blueprint or kernel.
        blueprint: the blueprint that it is, or is made of.
        parents: blueprints that this blueprint was made of, known here or not.
        children: blueprints in the library that were made of it.
        kernels: kernels of this blueprint.
        superseded_by: the kernel that stands in its place.
        supersedes: the kernels in whose place it stands.
    """

    id: str
    blueprint: str
    parents: tuple[str, ...]
    children: tuple[str, ...]
    kernels: tuple[str, ...]
    superseded_by: str | None = None
    supersedes: tuple[str, ...] = ()


def lineage(
    identity: str, blueprints: Mapping[str, BlueprintEntry], records: Mapping[str, KernelRecord]
) -> Lineage:
    """The relations of a blueprint (``bp-...``) or kernel (``ck-...``).

    Raises:
        InputError: there is no such blueprint or kernel.
    """
    record = records.get(identity)
    blueprint = record.spec.blueprint if record is not None else identity
    if record is None and identity not in blueprints:
        near = nearest(identity, [*blueprints, *records])
        hint = f"; nearest: {near}" if near else ""
        raise InputError(f"the library has no blueprint or kernel {identity!r}{hint} (`esper library ls`)")
    entry = blueprints.get(blueprint)
    return Lineage(
        id=identity,
        blueprint=blueprint,
        parents=tuple(sorted(entry.graph.provenance.parents)) if entry is not None else (),
        children=tuple(
            sorted(id_ for id_, one in blueprints.items() if blueprint in one.graph.provenance.parents)
        ),
        kernels=tuple(sorted(id_ for id_, one in records.items() if one.spec.blueprint == blueprint)),
        superseded_by=record.superseded_by if record is not None else None,
        supersedes=tuple(sorted(id_ for id_, one in records.items() if one.superseded_by == identity)),
    )

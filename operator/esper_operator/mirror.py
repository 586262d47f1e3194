"""Kernels and the system's own blueprints, shown as resources in the release's namespace and never read back.

What is shown goes by record alone: while the library is away, or does not know a kernel any more, it stays.
"""

import json
import logging
import time
from collections.abc import Callable, Mapping

from pydantic import ValidationError

from esper_operator.blueprints import blueprint_seen, read_blueprint
from esper_operator.kube import BLUEPRINT, KERNEL, Kind, Kube, Object
from esper_operator.names import LIBRARY, SOURCE_LABEL, BlueprintKey, KernelKey, Key, shows_library
from esper_operator.objects import Objects
from esper_operator.office import Office
from esper_operator.settings import Settings
from esper_operator.writer import StatusWriter
from esper_runtime.contracts import BlueprintEntry, KernelRecord
from esper_runtime.contracts.resources import (
    BlueprintSpec,
    BlueprintStatus,
    CompiledKernelSpec,
    CompiledKernelStatus,
)
from esper_runtime.planning import (
    LibraryFacts,
    Merit,
    Workplaces,
    blueprints_shown,
    kernel_status,
    kernels_shown,
    plan_blueprint,
)
from esper_runtime.urza import merit

ARTIFACTS = "urza://artifacts/"
"""How the place of an artifact begins: its digest follows; `esper library` fetches it."""

_log = logging.getLogger(__name__)


class Mirror:
    """Shows what the library has.

    Args:
        kube: the API.
        objects: what was seen last.
        writer: of statuses.
        office: the library.
        facts: what the library says of a blueprint.
        places: where kernels are made, as it is known.
        in_use: ids of blueprints that runs which go on have planted.
        settings: of the release.
        owner: an owner reference for what is shown, so that it goes with the release.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        kube: Kube,
        objects: Objects,
        writer: StatusWriter,
        office: Office,
        facts: Callable[[str | None], LibraryFacts],
        places: Callable[[], Workplaces],
        in_use: Callable[[], frozenset[str]],
        settings: Settings,
        owner: Object | None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._owner = owner
        self._kube, self._objects, self._writer, self._office = kube, objects, writer, office
        self._facts, self._places, self._in_use = facts, places, in_use
        self._namespace, self._clock = settings.namespace, clock

    async def reconcile(self) -> None:
        """One pass; nothing happens while the library is away.

        Raises:
            KubeError: the API server did not do something; the pass is to be made again.
        """
        if not self._office.ready:
            return
        entries, records = self._office.blueprints(), self._office.records()
        worths = {record.kernel: merit(record.report) for record in records.values() if record.report}
        merits = {
            record.kernel: Merit(worths.get(record.kernel, 0.0), _entered(entries, record.spec.blueprint))
            for record in records.values()
        }
        used = self._in_use()
        kernels = kernels_shown(records.values(), entries, merits, used)
        # One that is to be made again, after the library has lost it, is none that fell behind.
        judged = {name for name, r in records.items() if r.digest is not None or _archived(entries, r)}
        await self._remove(KERNEL, {*kernels}, judged)
        for kernel in kernels:
            await self._show(KernelKey(self._namespace, kernel), kernel_spec(records[kernel]))
        best: dict[str, float] = {}
        for record in records.values():
            if record.kernel in worths:
                known = best.get(record.spec.blueprint, 0.0)
                best[record.spec.blueprint] = max(known, worths[record.kernel])
        shown = blueprints_shown(entries, {name: Merit(worth) for name, worth in best.items()}, used)
        await self._remove(BLUEPRINT, {*shown}, {*entries})
        for blueprint in shown:
            await self._show(BlueprintKey(self._namespace, blueprint), blueprint_spec(entries[blueprint]))
        self._say(records)

    async def _remove(self, kind: Kind, shown: set[str], known: set[str]) -> None:
        for body in self._mine(kind):
            name, uid = body["metadata"]["name"], body["metadata"]["uid"]
            if name not in shown and name in known and body["metadata"].get("deletionTimestamp") is None:
                await self._kube.delete(kind, self._namespace, name, uid, "Background")
                self._objects.remove(kind, self._namespace, name, uid)

    async def _show(self, key: Key, spec: CompiledKernelSpec | BlueprintSpec) -> None:
        body = self._objects.get(key.kind, key.namespace, key.name)
        if body is not None and not shows_library(body):
            _log.warning("%s: a person has made a resource of this name; the library's is not shown", key)
            return
        if body is not None and _spec_of(body, type(spec)) == spec:
            return
        if body is not None:  # a spec never changes: this one shows another library's
            uid = body["metadata"]["uid"]
            await self._kube.delete(key.kind, key.namespace, key.name, uid, "Background")
            self._objects.remove(key.kind, key.namespace, key.name, uid)
        resource = _resource(key, spec, self._owner)
        self._objects.put(key.kind, await self._kube.apply(key.kind, resource))

    def _say(self, known: Mapping[str, KernelRecord]) -> None:
        for body in self._mine(KERNEL):
            name, head = body["metadata"]["name"], body["metadata"]
            before = _kernel_status(body)
            status = kernel_status(known.get(name), before, int(head.get("generation") or 0), self._clock())
            self._offer(KernelKey(self._namespace, name), body, status)
        for body in self._mine(BLUEPRINT):
            read = read_blueprint(body)
            seen = blueprint_seen(body, read, mirrored=True)
            plan = plan_blueprint(seen, self._facts(read.id), self._places(), self._clock())
            self._offer(BlueprintKey(self._namespace, body["metadata"]["name"]), body, plan.status)

    def _offer(self, key: Key, body: Object, status: CompiledKernelStatus | BlueprintStatus) -> None:
        after = status.model_dump(mode="json", by_alias=True, exclude_none=True)
        same = after == (body.get("status") or {})
        if not same or self._writer.is_waiting(key):
            self._writer.offer(key, body["metadata"]["uid"], None if same else after, urgent=False)

    def _mine(self, kind: Kind) -> list[Object]:
        return [body for body in self._objects.all(kind, self._namespace) if shows_library(body)]


def kernel_spec(record: KernelRecord) -> CompiledKernelSpec:
    """The spec of a kernel that has an artifact."""
    assert record.digest is not None
    return CompiledKernelSpec(
        blueprint=record.spec.blueprint,
        interface=record.spec.interface,
        target=record.spec.target,
        pipeline=record.spec.pipeline,
        uri=ARTIFACTS + record.digest,
        digest=record.digest,
        bytes=record.bytes or 0,
    )


def blueprint_spec(entry: BlueprintEntry) -> BlueprintSpec:
    """The spec of a blueprint in the library."""
    return BlueprintSpec(graph=entry.graph)


def _resource(key: Key, spec: CompiledKernelSpec | BlueprintSpec, owner: Object | None) -> Object:
    labels = {
        "app.kubernetes.io/name": "esper",
        "app.kubernetes.io/managed-by": "esper-operator",
        SOURCE_LABEL: LIBRARY,
    }
    head: Object = {"name": key.name, "namespace": key.namespace, "labels": labels}
    if owner is not None:
        head["ownerReferences"] = [owner]
    return {"metadata": head, "spec": spec.model_dump(mode="json", by_alias=True, exclude_none=True)}


def _spec_of(
    body: Object, model: type[CompiledKernelSpec] | type[BlueprintSpec]
) -> CompiledKernelSpec | BlueprintSpec | None:
    """What a resource says, with the defaults that the API server has added; None for anything else."""
    try:
        return model.model_validate_json(json.dumps(body.get("spec") or {}))
    except ValidationError:
        return None


def _kernel_status(body: Object) -> CompiledKernelStatus:
    try:
        return CompiledKernelStatus.model_validate_json(json.dumps(body.get("status") or {}))
    except ValidationError:
        return CompiledKernelStatus()


def _archived(entries: Mapping[str, BlueprintEntry], record: KernelRecord) -> bool:
    entry = entries.get(record.spec.blueprint)
    return entry is not None and entry.archived is not None


def _entered(entries: Mapping[str, BlueprintEntry], blueprint: str) -> str:
    entry = entries.get(blueprint)
    return "" if entry is None else entry.entered

"""A training and the library: what it wishes for comes, what people enter comes, what is ruled out goes."""

import asyncio
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from esper_runtime.artifact import KeyRing
from esper_runtime.blueprint import canonical_id, catalogue, misfit
from esper_runtime.contracts import (
    Blueprint,
    BlueprintEntry,
    BlueprintSelector,
    EsperError,
    FieldReport,
    Innovation,
    InnovationWish,
    KernelSpec,
    KernelState,
    KernelWish,
    Origin,
    Pipeline,
    Provenance,
    Role,
    Ruling,
    RunOnBus,
    Verdict,
)
from esper_runtime.kasmina import Growable, Stock, current_target, spec_for, toolchain, wrap
from esper_runtime.oona import BundledServer
from esper_runtime.sandbox import Sandbox
from esper_runtime.tezzeret import make
from esper_runtime.tolaria import LibraryLink
from esper_runtime.tolaria.stocking import wait_for_library, wanted_invented, wanted_kernels
from esper_runtime.tolaria.supply import Supply
from esper_runtime.urabrask import evaluate, new_sandbox
from esper_runtime.urza import Library, Shelf, Wanted


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with new_sandbox() as sandbox:
        yield sandbox


@pytest.fixture
def server(tmp_path: Path) -> Iterator[BundledServer]:
    with BundledServer(tmp_path / "bus") as server:
        yield server


@pytest.fixture
def ring(tmp_path: Path) -> KeyRing:
    return KeyRing(tmp_path / "home")


def growable(*names: str) -> Growable:
    net = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3))
    return wrap(net, torch.randn(2, 4), blueprints={name: catalogue()[name] for name in names})


def own(name: str = "mine") -> Blueprint:
    """A blueprint that is not in the catalogue."""
    graph = catalogue()["mlp"]
    nodes = [n.model_copy(update={"op": "tanh"}) if n.op in ("relu", "gelu") else n for n in graph.nodes]
    return graph.model_copy(update={"name": name, "nodes": tuple(nodes)})


class Forge:
    """Makes and tests what is wished for, as the workers do, with one connection that may do everything."""

    def __init__(self, server: BundledServer, ring: KeyRing, sandbox: Sandbox, folder: Path) -> None:
        self._server, self._ring, self._sandbox, self._folder = server, ring, sandbox, folder
        self._done: set[str] = set()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def __enter__(self) -> "Forge":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._thread.join()

    async def _run(self) -> None:
        async with await Library.connect(self._server.address, self._ring.trust, keeper=True) as library:
            while not self._closing.is_set():
                entries = await library.blueprints()
                for kernel, wish in (await library.wishes()).items():
                    if kernel not in self._done and wish.spec.blueprint in entries:
                        self._done.add(kernel)
                        await self._make(library, wish.spec, entries[wish.spec.blueprint].graph)
                await asyncio.sleep(0.05)

    async def _make(self, library: Library, spec: Any, graph: Blueprint) -> None:
        archive, compiled = make(spec, graph, self._folder, self._ring)
        await library.put_artifact(archive)
        await library.publish(compiled)
        report = evaluate(archive, compiled, self._ring.trust, sandbox=self._sandbox)
        verdict = Verdict(kernel=spec.kernel_id, digest=report.digest, report=report)
        await library.publish(self._ring.sign(Role.URABRASK, verdict))


def with_library(server: BundledServer, ring: KeyRing, work: Callable[[Library], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        async with await Library.connect(server.address, ring.trust, keeper=True) as library:
            return await work(library)

    return asyncio.run(run())


def enter(server: BundledServer, ring: KeyRing, *graphs: Blueprint) -> None:
    async def work(library: Library) -> None:
        for graph in graphs:
            await library.enter(graph)

    with_library(server, ring, work)


def linked(server: BundledServer, ring: KeyRing, model: Growable) -> tuple[LibraryLink, Wanted]:
    link = LibraryLink(server.address_file, RunOnBus("local", "run"))
    slots = tuple({slot.place.interface: None for slot in model.slots.values()})
    wanted = Wanted(
        specs=wanted_kernels(model),
        slots=slots,
        target=current_target(),
        toolchain=toolchain(Pipeline.FAST),
        names=BlueprintSelector(exclude=("unwanted",)),
    )
    return link, wanted


def nothing_of_its_own(wanted: Wanted, innovation: InnovationWish | None = None) -> Wanted:
    return wanted.model_copy(update={"specs": {}, "innovation": innovation})


def eventually(found: Callable[[], bool], seconds: float = 40.0) -> None:
    until = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.05)


def test_what_a_run_wishes_for_is_made_by_others_and_lies_verified_on_its_shelf(
    server: BundledServer, ring: KeyRing, sandbox: Sandbox, tmp_path: Path
) -> None:
    model, shelf = growable("mlp", "low-rank"), Shelf(ring.home)
    enter(server, ring, *model.blueprints.values())
    link, wanted = linked(server, ring, model)
    said: list[tuple[int, int]] = []
    with Forge(server, ring, sandbox, tmp_path / "made"):
        link.start(wanted, ring.home)
        wait_for_library(
            link, shelf, ring.trust, wanted, lambda _, done, total: said.append((done, total)), bool
        )
        link.close()
    found, refused = shelf.usable(wanted.specs, ring.trust)
    assert set(found) == set(wanted.specs)
    assert not refused
    assert said[0] == (0, len(wanted.specs))


def test_a_blueprint_that_a_person_enters_arrives_and_leaves_when_it_is_archived(
    server: BundledServer, ring: KeyRing, sandbox: Sandbox, tmp_path: Path
) -> None:
    enter(server, ring)
    model = growable("mlp")
    link, wanted = linked(server, ring, model)
    model.stock, supply, journal = Stock(), Supply(), []
    supply.offers = link.offers
    with Forge(server, ring, sandbox, tmp_path / "made"):
        link.start(nothing_of_its_own(wanted), ring.home)
        enter(server, ring, own(), own("unwanted").model_copy(update={"nodes": catalogue()["mlp"].nodes}))
        eventually(lambda: supply.waiting)
        supply.apply(10, model, journal.append, lambda: 0, supply.arrived())
        assert {kernel.name for kernel in model.stock.admitted.values()} == {"mine"}
        assert canonical_id(own()) in model.blueprints
        with_library(server, ring, lambda library: library.archive(canonical_id(own()), "it is no good"))
        eventually(lambda: supply.waiting)
        supply.apply(20, model, journal.append, lambda: 1, supply.arrived())
        link.close()
    assert not model.stock.admitted
    assert [event.kind for event in journal] == ["KernelsArrived", "KernelsGone"]
    assert "it is no good" in next(iter(journal[1].kernels.values()))


def generated(wish: str, number: int) -> BlueprintEntry:
    """One that was invented for a run; each number is another graph."""
    made = Provenance(origin=Origin.GENERATED, generator="test", seed=number)
    nodes = [
        node.model_copy(update={"attributes": {"width": 3 + number}}) if node.id == "hidden" else node
        for node in own().nodes
    ]
    graph = own(f"karn-{number}").model_copy(update={"nodes": tuple(nodes), "provenance": made})
    return BlueprintEntry(
        blueprint=canonical_id(graph), graph=graph, origin="Generated", entered="2026", wish=wish
    )


def test_what_was_invented_is_taken_up_only_by_runs_that_want_that_and_others_inventions_once_they_passed(
    server: BundledServer, ring: KeyRing, sandbox: Sandbox, tmp_path: Path
) -> None:
    model = growable("mlp")
    on = Innovation(enabled=True, blueprints=1)
    mine = wanted_invented(model, on, "local/run")
    assert mine is not None
    assert {slots.most_in for slots in mine.slots} == {
        slot.place.interface.width_in for slot in model.slots.values()
    }
    assert wanted_invented(model, Innovation(), "local/run") is None
    entries = [generated(mine.wish_id, 1), *(generated("iw-" + "0" * 12, number) for number in (2, 3, 4))]
    ids = [entry.blueprint for entry in entries]

    async def fill(library: Library) -> None:
        for entry in entries:
            await library.put_entry(entry)
        await library.enter(own())
        for entry in entries[1:3]:  # two inventions of others are wished for, so that they are made and pass
            await library.wish(KernelWish(spec=specs_of(entry)[0]))

    def specs_of(entry: BlueprintEntry) -> list[KernelSpec]:
        slots = {slot.place.interface: None for slot in model.slots.values()}
        fitting = [slot for slot in slots if misfit(entry.graph, slot) is None]
        return [spec_for(entry.blueprint, slot, current_target(), Pipeline.FAST) for slot in fitting]

    def wishes() -> set[str]:
        found = with_library(server, ring, lambda library: library.wishes())
        return {wish.spec.blueprint for wish in found.values()}

    with_library(server, ring, fill)
    link, wanted = linked(server, ring, model)
    link.start(nothing_of_its_own(wanted), ring.home)
    eventually(lambda: canonical_id(own()) in wishes())
    link.close()
    assert wishes() == {canonical_id(own()), *ids[1:3]}
    assert with_library(server, ring, lambda library: library.innovations()) == {}
    link, wanted = linked(server, ring, model)
    link.start(nothing_of_its_own(wanted, mine), ring.home)
    eventually(lambda: ids[0] in wishes())
    with Forge(server, ring, sandbox, tmp_path / "made"):
        arrived: set[str] = set()

        def both() -> bool:
            while link.offers:
                arrived.update(kernel.blueprint for kernel in link.offers.popleft().arrived)
            return ids[0] in arrived and bool(arrived & set(ids[1:3]))

        eventually(both)
    link.close()
    assert len(arrived & set(ids[1:])) == 1, "as many inventions of others as the manifest says"
    assert ids[3] not in wishes()
    assert with_library(server, ring, lambda library: library.innovations()) == {mine.wish_id: mine}


def test_a_quarantined_kernel_leaves_and_is_refused_by_the_shelf_from_then_on(
    server: BundledServer, ring: KeyRing, sandbox: Sandbox, tmp_path: Path
) -> None:
    model, shelf = growable("mlp"), Shelf(ring.home)
    enter(server, ring, *model.blueprints.values())
    link, wanted = linked(server, ring, model)
    (kernel,) = wanted.specs
    with Forge(server, ring, sandbox, tmp_path / "made"):
        link.start(wanted, ring.home)
        eventually(lambda: kernel in link.settled)
        link.offers.clear()
        ruling = Ruling(kernel=kernel, state=KernelState.QUARANTINED, reason="three runs failed")
        signed = ring.sign(Role.PLANNER, ruling)
        with_library(server, ring, lambda library: library.publish(signed))
        eventually(lambda: bool(link.offers))
        link.close()
    assert "three runs failed" in link.offers[0].gone[kernel]
    with pytest.raises(EsperError, match="three runs failed"):
        shelf.open(shelf.artifacts(kernel)[0], ring.trust)


def test_a_library_that_has_lost_its_storage_is_asked_again_for_what_the_run_has(
    server: BundledServer, ring: KeyRing, sandbox: Sandbox, tmp_path: Path
) -> None:
    model = growable("mlp")
    enter(server, ring, *model.blueprints.values())
    link, wanted = linked(server, ring, model)
    (kernel,) = wanted.specs

    async def lose(library: Library) -> None:
        js = library._client.jetstream()
        for name in ("blueprints", "wishes", "compiled", "verdicts", "rulings"):
            await js.delete_stream(f"KV_{name}")
        await library.refresh()
        assert kernel not in await library.wishes()

    with Forge(server, ring, sandbox, tmp_path / "made"):
        link.start(wanted, ring.home)
        eventually(lambda: kernel in link.settled)
    with_library(server, ring, lose)
    eventually(lambda: kernel in with_library(server, ring, lambda library: library.wishes()))
    link.close()


def test_reports_reach_the_library_once_also_from_a_process_that_goes_on(
    server: BundledServer, ring: KeyRing
) -> None:
    enter(server, ring)
    model = growable("mlp")
    reports = [
        FieldReport(
            kernel="ck-000000000001",
            digest="0" * 64,
            blueprint="bp-000000000001",
            run="run",
            seed=f"s{number}",
            slot="x",
            outcome="Culled",
            steps=number,
            parameters=1,
        )
        for number in range(3)
    ]
    for count in (2, 3):
        link, wanted = linked(server, ring, model)
        for number in range(count):
            link.report(f"{number:064x}", reports[number])
        link.start(Wanted(specs={}, target=wanted.target), ring.home)
        eventually(lambda link=link: link.connected)
        link.close()
    stored = with_library(server, ring, lambda library: library.reports())
    assert sorted(stored) == [f"{number:064x}" for number in range(3)]


def test_nobody_is_waited_for_where_no_forge_works_for_the_library(ring: KeyRing, tmp_path: Path) -> None:
    model, shelf = growable("mlp"), Shelf(ring.home)
    forges = [True, False]
    link, said = LibraryLink(tmp_path / "none.json", RunOnBus("local", "run"), lambda: forges.pop(0)), []
    wanted = Wanted(specs=wanted_kernels(model), target=current_target())
    wait_for_library(link, shelf, ring.trust, wanted, lambda *told: said.append(told), bool)
    assert forges == []
    assert said == [
        ("kernels are made and tested", 0, 1),
        ("no forge works for the library; kernels are made here", 0, 1),
    ]


def test_without_a_library_a_run_begins_and_ends_all_the_same(ring: KeyRing, tmp_path: Path) -> None:
    link = LibraryLink(tmp_path / "none.json", RunOnBus("local", "run"))
    link.start(Wanted(specs={}, target=current_target()), ring.home)
    begun = time.monotonic()
    link.close()
    assert time.monotonic() - begun < 5
    assert not link.connected


def test_a_process_that_dies_is_replaced_and_told_all_that_the_run_has_said(
    server: BundledServer, ring: KeyRing, sandbox: Sandbox, tmp_path: Path
) -> None:
    model = growable("mlp")
    enter(server, ring, *model.blueprints.values())
    link, wanted = linked(server, ring, model)
    (spec,) = wanted.specs.values()
    link.start(nothing_of_its_own(wanted), ring.home)
    eventually(lambda: link.connected)
    process = link._process
    assert process is not None
    process.kill()
    eventually(lambda: not link.connected)
    link.wish(spec)
    with Forge(server, ring, sandbox, tmp_path / "made"):
        eventually(lambda: spec.kernel_id in link.settled)
    link.close()
    assert link._process is not process
    assert link._process is not None
    assert link._process.poll() == 0


def test_a_process_that_cannot_be_started_is_tried_again(
    server: BundledServer,
    ring: KeyRing,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    enter(server, ring)
    link, wanted = linked(server, ring, growable("mlp"))
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", str(tmp_path / "no python"))
        link.start(nothing_of_its_own(wanted), ring.home)
        eventually(lambda: "cannot be started" in caplog.text)
    eventually(lambda: link.connected)
    link.close()

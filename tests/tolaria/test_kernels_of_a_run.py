"""Validated kernels in a training: made before the first step, admitted at boundaries, reported later."""

import shutil
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from esper_runtime.artifact import HOME_VARIABLE, KeyRing
from esper_runtime.blueprint import canonical_id, catalogue
from esper_runtime.contracts import (
    Directive,
    Growth,
    JournalEntry,
    KernelError,
    KernelReported,
    KernelsArrived,
    KernelsGone,
    KernelSummary,
    Operation,
    Refused,
    SeedChanged,
    SeedStage,
    Started,
    UsableKernel,
)
from esper_runtime.kasmina import Growable, Stock, wrap
from esper_runtime.nissa import read_journal, recording_of
from esper_runtime.nissa.kernels import kernels_of
from esper_runtime.tolaria import Grower, Trainer
from esper_runtime.tolaria.forging import ForgingStoppedError, prepare
from esper_runtime.tolaria.replay import ReplayTrainer
from esper_runtime.tolaria.stocking import stocked, wanted_kernels
from esper_runtime.tolaria.supply import Supply
from esper_runtime.tolaria.watching import ShelfWatch
from esper_runtime.urza import Offer, Shelf
from tests.tolaria.runs import IMMEDIATE, Recorder, Script, manifest

FEW = {"blueprints": {"include": ["mlp", "low-rank"]}}


def small(steps: int = 60, **spec):
    growth = {"controller": {"everySteps": 5}, "budget": {"parameters": "4x"}, **FEW}
    return manifest(steps, growth=growth, **spec)


def trained(folder: Path, controller=None, recorder=None, run=None):
    recorder = recorder or Recorder()
    trainer = Trainer(run or small(), folder, recorder, controller=controller or Script((10, IMMEDIATE)))
    recorder.trainer = trainer
    return trainer.run(), recorder


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine on which nothing was ever made."""
    home = tmp_path / "own"
    monkeypatch.setenv(HOME_VARIABLE, str(home))
    return home


@pytest.fixture
def copied_home(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of one's own that has the kernels of `small`."""
    model = wrap(nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 3)), torch.randn(2, 4))
    assert isinstance(model, Growable)
    trained(tmp_path / "first")
    copy = tmp_path / "copied"
    shutil.copytree(home / "keys", copy / "keys")
    shutil.copytree(home / "kernels", copy / "kernels")
    copy.chmod(0o700)
    monkeypatch.setenv(HOME_VARIABLE, str(copy))
    return copy


# Before the first step


def test_a_machine_that_has_none_makes_and_tests_them_once(own_home: Path, tmp_path: Path) -> None:
    result, recorder = trained(tmp_path / "one")
    assert result.outcome == "Complete"
    names = sorted(path.name for path in Shelf(own_home).folder.iterdir() if path.suffix == ".kernel")
    assert names
    times = {path: path.stat().st_mtime_ns for path in Shelf(own_home).folder.glob("*.kernel")}
    _, again = trained(tmp_path / "two")
    assert {path: path.stat().st_mtime_ns for path in Shelf(own_home).folder.glob("*.kernel")} == times
    (arrived,) = recorder.of(KernelsArrived)
    assert {kernel.artifact for kernel in arrived.kernels} == {name.removesuffix(".kernel") for name in names}
    assert all(kernel.figures["forward_us"] > 0 for kernel in arrived.kernels)
    assert again.of(KernelsArrived) == [arrived]
    kinds = [entry.event.kind for entry in recorder.entries]
    assert kinds.index("Started") < kinds.index("KernelsArrived") < kinds.index("Validated")


def test_a_stop_before_the_first_step_is_obeyed_and_what_is_made_stays(
    own_home: Path, tmp_path: Path
) -> None:
    class Impatient(Recorder):
        def on_preparing(self, text, done, total):
            if done:
                self.trainer.request_stop("no time")

    result, recorder = trained(tmp_path / "run", recorder=Impatient())
    assert (result.outcome, result.reason, result.trained) == ("Interrupted", "no time", False)
    assert recorder.entries == []
    assert Shelf(own_home).artifacts()
    assert trained(tmp_path / "run")[0].outcome == "Complete"


def test_a_forge_that_cannot_make_anything_says_why(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = growable()
    specs = wanted_kernels(model)
    graphs = dict.fromkeys((spec.blueprint for spec in specs.values()), catalogue()["squeeze-excite"])
    with pytest.raises(KernelError, match=r"none of the 1 kernels may be used: .* the graph given is"):
        prepare(list(specs.values()), graphs, own_home, lambda *_: None, lambda: False)
    for said in Shelf(own_home).folder.glob("*.rejected"):
        said.unlink()
    monkeypatch.setattr("sys.executable", shutil.which("false"))
    with pytest.raises(KernelError, match=r"its process died 2 times, last with: it ended with code 1"):
        prepare(list(specs.values()), model.blueprints, own_home, lambda *_: None, lambda: False)


def test_two_runs_that_begin_together_make_each_kernel_once(own_home: Path) -> None:
    model = growable()
    specs, graphs = wanted_kernels(model), model.blueprints
    said: list[list[str]] = [[], []]
    found = []

    def begin(number: int) -> None:
        def told(text: str, done: int, total: int) -> None:
            said[number].append(text)

        found.append(prepare(list(specs.values()), graphs, own_home, told, lambda: False))

    threads = [threading.Thread(target=begin, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] == found[1]
    assert sum("another run on this machine makes kernels" in texts for texts in said) == 1
    assert sum("kernels are made and tested" in texts for texts in said) == 1


def test_waiting_for_another_run_can_be_stopped(own_home: Path) -> None:
    import fcntl

    model = growable()
    specs = wanted_kernels(model)
    with (Shelf(own_home).folder / ".forging").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ForgingStoppedError):
            prepare(list(specs.values()), model.blueprints, own_home, lambda *_: None, lambda: True)


def growable() -> Growable:
    net = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3))
    return wrap(net, torch.randn(2, 4), blueprints={"mlp": catalogue()["mlp"]})


# Where the library makes them


def test_a_run_that_makes_none_begins_without_them_and_journals_which_it_lacks(own_home: Path) -> None:
    model, said, events = growable(), [], []
    ((kernel, spec),) = wanted_kernels(model).items()
    with stocked(model, makes=False, told=lambda *told: said.append(told)) as supply:
        assert said == [("this run has no bus, so that no library gives it kernels", 0, 1)]
        assert not supply.apply(0, model, events.append, lambda: 0, supply.arrived())
        assert not model.stock.admitted
    summary = KernelSummary(
        kernel=kernel,
        digest="0" * 64,
        blueprint=spec.blueprint,
        name="mlp",
        interface=spec.interface,
        pipeline=spec.pipeline,
        trains=True,
    )
    arrived = KernelsArrived(kernels=(summary,), reason="validated before the run began")
    before = JournalEntry(
        sequence=0, time="2026-01-01T00:00:00Z", incarnation=0, step=0, event=arrived, previous="0" * 64
    )
    with stocked(model, [before.sealed()], makes=False) as supply:
        supply.apply(0, model, events.append, lambda: 1, supply.arrived())
    assert events == [KernelsGone(kernels={kernel: "the library has not given it yet"})]
    assert not list((own_home / "keys").glob("*.pem"))


# At boundaries


def usable(home: Path, name: str) -> list[UsableKernel]:
    shelf, trust = Shelf(home), KeyRing(home).trust
    kernels = {artifact[:-17] for artifact in shelf.artifacts()}
    found, _ = shelf.usable(kernels, trust)
    return [kernel for kernel in found.values() if kernel.name == name]


class Later(Trainer):
    """A trainer to which kernels are offered, or of which they are taken, at steps."""

    offers: dict[int, Offer]

    def _train(self, parts, opening, supply):
        step = self._observer.on_step

        def on_step(number, loss):
            step(number, loss)
            if number in self.offers:
                supply.offers.append(self.offers[number])

        self._observer.on_step = on_step
        return super()._train(parts, opening, supply)


def plant(name: str, *steps: int):
    class Planter(Script):
        def decide(self, state):
            decision = super().decide(state)
            if state.step not in steps:
                return decision
            slot = next(slot for slot in state.slots if slot.state == "Dormant")
            directive = Directive(
                operation=Operation.GERMINATE,
                slot=slot.slot,
                blueprint=canonical_id(catalogue()[name]),
                plan=IMMEDIATE,
                explanation="the test plants it",
            )
            return decision.model_copy(update={"directives": (*decision.directives, directive)})

    return Planter()


def test_a_kernel_that_arrives_becomes_a_candidate_at_a_boundary_and_a_replay_has_it_there(
    home: Path, tmp_path: Path
) -> None:
    trained(tmp_path / "before", run=small())
    run = manifest(60, growth={"controller": {"everySteps": 5}, "blueprints": {"include": ["mlp"]}})
    recorder = Recorder()
    trainer = Later(run, tmp_path / "run", recorder, controller=plant("low-rank", 10, 30))
    trainer.offers = {20: Offer(arrived=tuple(usable(home, "low-rank")))}
    trainer.run()
    refused = [e for e in recorder.entries if isinstance(e.event, Refused)]
    assert [entry.step for entry in refused] == [10]
    arrived = [e for e in recorder.entries if isinstance(e.event, KernelsArrived)]
    assert [entry.step for entry in arrived] == [0, 20]
    born = [e for e in recorder.entries if isinstance(e.event, SeedChanged) and e.event.before is None]
    assert [(entry.step, entry.event.name) for entry in born] == [(30, "low-rank")]
    assert born[0].event.kernel in {kernel.kernel for kernel in arrived[1].event.kernels}
    replay = ReplayTrainer(recording_of(read_journal(tmp_path / "run" / "journal.jsonl"), 60), tmp_path / "r")
    digest = replay.run().finished.weights_digest
    assert digest == recorder.entries[-1].event.weights_digest


def test_a_kernel_that_is_gone_is_planted_no_more(home: Path, tmp_path: Path) -> None:
    trained(tmp_path / "before", run=small())
    recorder = Recorder()
    trainer = Later(small(), tmp_path / "run", recorder, controller=plant("low-rank", 10, 30))
    gone = {kernel.kernel: "quarantined: it failed in three runs" for kernel in usable(home, "low-rank")}
    trainer.offers = {20: Offer(gone=gone)}
    trainer.run()
    (event,) = recorder.of(KernelsGone)
    assert set(event.kernels.values()) == {"quarantined: it failed in three runs"}
    refused = [e for e in recorder.entries if isinstance(e.event, Refused)]
    assert [entry.step for entry in refused] == [30]


def test_what_is_done_again_has_each_kernel_from_the_same_step_on(home: Path, tmp_path: Path) -> None:
    trained(tmp_path / "before", run=small())
    kernels = usable(home, "low-rank")[:1]
    model = growable()
    model.stock = Stock()
    supply, journal = Supply(), []
    supply.offers.append(Offer(arrived=tuple(kernels)))
    assert not supply.apply(5, model, journal.append, lambda: 7, ())
    assert supply.apply(10, model, journal.append, lambda: 12, supply.arrived())
    assert set(model.stock.admitted) == {kernels[0].kernel}
    supply.restore(9, model)
    assert not model.stock.admitted
    supply.apply(9, model, journal.append, lambda: 13, ())
    assert not model.stock.admitted
    supply.apply(10, model, journal.append, lambda: 13, ())
    assert set(model.stock.admitted) == {kernels[0].kernel}
    assert len(journal) == 1


def test_a_resumed_run_is_bit_for_bit_the_one_that_was_not_interrupted(tmp_path: Path) -> None:
    whole, _ = trained(tmp_path / "whole")
    recorder = Recorder(stop_at=33)
    cut, _ = trained(tmp_path / "cut", recorder=recorder)
    assert cut.outcome == "Interrupted"
    rest, more = trained(tmp_path / "cut", Script((10, IMMEDIATE)))
    assert rest.finished.weights_digest == whole.finished.weights_digest
    assert more.of(KernelsArrived) == []


def test_a_kernel_revoked_between_two_starts_is_gone_at_the_second_and_its_seed_goes_on(
    copied_home: Path, tmp_path: Path
) -> None:
    trained(tmp_path / "run", recorder=Recorder(stop_at=33))
    entries = read_journal(tmp_path / "run" / "journal.jsonl")
    planted = next(e.event for e in entries if isinstance(e.event, SeedChanged))
    KeyRing(copied_home).revoke(planted.digest, "its numbers were forged")
    result, recorder = trained(tmp_path / "run")
    assert result.outcome == "Complete"
    (gone,) = recorder.of(KernelsGone)
    assert "forged" in gone.kernels[planted.kernel]
    assert not [e for e in recorder.of(SeedChanged) if e.after is SeedStage.CULLED]


def test_a_damaged_kernel_is_made_anew_and_named_and_the_run_ends_with_the_same_weights(
    copied_home: Path, tmp_path: Path
) -> None:
    shelf, trust = Shelf(copied_home), KeyRing(copied_home).trust
    journal = read_journal(tmp_path / "first" / "journal.jsonl")
    (wanted,) = [entry.event for entry in journal if isinstance(entry.event, KernelsArrived)]
    name = wanted.kernels[0].artifact
    words = shelf.folder / f"{name}.json"
    words.write_bytes(words.read_bytes().replace(b'"verdict"', b'"vErdict"'))
    result, recorder = trained(tmp_path / "run")
    (arrived,) = recorder.of(KernelsArrived)
    assert set(arrived.remade) == {name[:-17]}
    assert f"{name}.json" in arrived.remade[name[:-17]]
    assert name in {kernel.artifact for kernel in arrived.kernels}
    assert shelf.open(name, trust).compiled.kernel == name[:-17]
    assert result.finished.weights_digest == journal[-1].event.weights_digest
    (_, why), *others = kernels_of(recorder.entries).refused
    assert why.startswith("made anew: ")
    assert not others


def test_only_what_changed_on_the_shelf_is_verified_again_while_a_run_trains(copied_home: Path) -> None:
    ring, shelf = KeyRing(copied_home), Shelf(copied_home)
    known, _ = shelf.usable({name[:-17] for name in shelf.artifacts()}, ring.trust)
    supply = Supply(known)
    watch = ShelfWatch(supply, shelf, ring.trust)
    assert watch.look() == 0
    kernel = next(iter(known.values()))
    with (shelf.folder / f"{kernel.artifact}.kernel").open("r+b") as archive:
        archive.write(b"\xff")
    assert watch.look() == 1
    assert [set(offer.gone) for offer in supply.arrived()] == [{kernel.kernel}]
    assert watch.look() == 0
    ring.revoke("0" * 64, "of another machine")
    assert watch.look() == len(known)
    assert supply.arrived() == []


# Reports


def test_every_seed_that_ends_and_every_one_that_lives_on_is_reported(tmp_path: Path) -> None:
    controller = Script((10, IMMEDIATE), (30, IMMEDIATE), cull=("s1",))
    _, recorder = trained(tmp_path / "run", controller, run=manifest(60))
    reports = {event.report.seed: event.report for event in recorder.of(KernelReported)}
    assert {seed: report.outcome for seed, report in reports.items()} == {"s1": "Culled", "s2": "Fossilized"}
    changes = {event.seed: event for event in recorder.of(SeedChanged)}
    for seed, report in reports.items():
        assert (report.kernel, report.digest) == (changes[seed].kernel, changes[seed].digest)
        assert report.contribution == changes[seed].contribution.mean
        assert report.run == "small"
    assert reports["s2"].steps == 30
    assert isinstance(recorder.entries[-1].event.weights_digest, str)


def test_a_loop_of_ones_own_plants_validated_kernels_only_and_reports(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(80, 4), torch.randint(0, 3, (80,))
    net = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3))
    model = wrap(net, x[:2], blueprints={name: catalogue()[name] for name in ("mlp", "low-rank")})
    events: list = []
    grower = Grower(
        model,
        torch.optim.AdamW(net.parameters(), 0.01),
        lambda out, target: nn.functional.cross_entropy(out, target, reduction="none"),
        (x[60:], y[60:]),
        20,
        growth=Growth.model_validate({"controller": {"everySteps": 2}, "budget": {"parameters": "9x"}}),
        controller=Script((4, IMMEDIATE)),
        journal=events.append,
    )
    assert model.stock is not None
    for _ in range(20):
        net.zero_grad()
        nn.functional.cross_entropy(model(x[:60]), y[:60]).backward()
        grower.step(x[:60], y[:60])
    kinds = [event.kind for event in events]
    assert kinds[0] == "KernelsArrived"
    planted = next(event for event in events if isinstance(event, SeedChanged))
    assert planted.kernel in {kernel.kernel for kernel in events[0].kernels}
    assert [e.report.seed for e in events if isinstance(e, KernelReported)] == ["s1"]
    assert not any(isinstance(event, Started) for event in events)

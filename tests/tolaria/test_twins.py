"""Compiled twins of kept seeds: swapped in between steps where faster, journalled, and found again."""

from pathlib import Path

import pytest
import torch
from torch import nn

from esper_runtime.artifact import KeyRing, esper_home
from esper_runtime.contracts import (
    Check,
    Compiled,
    InputError,
    InterfaceKind,
    KernelReported,
    KernelSpec,
    Pipeline,
    Role,
    SeedChanged,
    SeedStage,
    Signed,
    TwinChanged,
    UsableKernel,
    ValidationReport,
    Verdict,
)
from esper_runtime.kasmina import current_target, spec_for
from esper_runtime.kasmina.kernels import Twin
from esper_runtime.nissa import read_journal, recording_of
from esper_runtime.tolaria import Trainer, load, loop
from esper_runtime.tolaria.replay import ReplayTrainer
from esper_runtime.tolaria.twins import TwinSource
from esper_runtime.urza import Offer, Shelf
from tests.oona.bus import eventually
from tests.tezzeret.kernels import slot
from tests.tolaria.runs import IMMEDIATE, Recorder, Script, manifest

STEPS, OFFERED, KEPT = 120, 40, 90


def described(twins: str):
    growth = {
        "controller": {"everySteps": 5},
        "budget": {"parameters": "4x"},
        "blueprints": {"include": ["mlp-tokens-half"]},
        "kernels": {"twins": twins},
    }
    return manifest(STEPS, growth=growth, host={"entrypoint": "tests.tolaria.test_twins:rows"})


def rows() -> nn.Module:
    """A host that reads the digits row by row."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Unflatten(1, (8, 8)),
        nn.Linear(8, 8),
        nn.ReLU(),
        nn.Linear(8, 8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


class Offered(Trainer):
    """A trainer whose library has the compiled kernels of `kernels` from a step on."""

    kernels: tuple[UsableKernel, ...] = ()

    def _train(self, parts, opening, supply):
        self.wished: list[KernelSpec] = []
        supply.wish = self.wished.append
        step = self._observer.on_step

        def on_step(number, loss):
            step(number, loss)
            if number == OFFERED:
                supply.offers.append(Offer(arrived=self.kernels))
                supply.cache.fill(kernel.artifact for kernel in self.kernels)

        self._observer.on_step = on_step
        return super()._train(parts, opening, supply)


def run(folder: Path, kernels=(), twins="WhereFaster", stop_at=None):
    recorder = Recorder(stop_at)
    trainer = Offered(described(twins), folder, recorder, controller=Script((10, IMMEDIATE)))
    trainer.kernels = kernels
    recorder.trainer = trainer
    return trainer.run(), recorder, trainer


@pytest.fixture(scope="module")
def compiled(compiled_tokens: tuple[Path, Signed], tmp_path_factory: pytest.TempPathFactory) -> UsableKernel:
    """The compiled kernel of the seed that is planted, on the shelf, with a verdict that it is faster."""
    folder = tmp_path_factory.mktemp("twins")
    *_, trainer = run(folder / "run")
    (spec,) = trainer.wished
    assert spec.pipeline is Pipeline.STANDARD
    ring = KeyRing(esper_home())
    archive, signed = compiled_tokens
    made = ring.trust.verify(signed, Role.TEZZERET)
    assert isinstance(made, Compiled)
    assert made.spec == spec
    report = ValidationReport(
        kernel=made.kernel,
        digest=made.digest,
        passed=True,
        checks=(Check(name="shape", passed=True),),
        numbers={"training_speedup": 1.5, "forward_speedup": 1.5},
        risk=0.1,
        seconds=1.0,
    )
    verdict = ring.sign(Role.URABRASK, Verdict(kernel=made.kernel, digest=made.digest, report=report))
    return Shelf(esper_home()).put(archive, signed, verdict, ring.trust)


@pytest.fixture
def any_twin_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy CPU none is for sure."""

    def source(cache, wish, batch):
        return TwinSource(cache, wish, batch, margin=-10.0)

    monkeypatch.setattr(loop, "TwinSource", source)


@pytest.mark.usefixtures("any_twin_is_faster")
def test_a_twin_is_swapped_in_journalled_reported_and_found_again_by_a_replay(
    compiled: UsableKernel, tmp_path: Path
) -> None:
    plain, *_ = run(tmp_path / "plain", twins="Never")
    result, recorder, trainer = run(tmp_path / "run", (compiled,))
    (event,) = recorder.of(TwinChanged)
    assert (event.seed, event.kernel, event.digest) == ("s1", compiled.kernel, compiled.digest)
    assert event.speedup is not None
    assert next(e.step for e in recorder.entries if e.event is event) >= OFFERED
    assert [report.report.twin for report in recorder.of(KernelReported)] == [True]
    body = trainer._loop.parts.model.seed("s1").body
    assert isinstance(body, Twin)
    assert body.compiled_calls > STEPS - OFFERED - 30
    one, other = load(tmp_path / "plain" / "model"), load(tmp_path / "run" / "model")
    for ours, theirs in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.05)
    assert abs(result.finished.test_loss - plain.finished.test_loss) < 0.1
    entries = read_journal(tmp_path / "run" / "journal.jsonl")
    replayed = ReplayTrainer(recording_of(entries, STEPS), tmp_path / "replay").run()
    assert replayed.finished.weights_digest == result.finished.weights_digest


@pytest.mark.usefixtures("any_twin_is_faster")
def test_a_resumed_run_has_its_twin_again_and_one_that_is_lost_is_said_to_be(
    compiled: UsableKernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "run", (compiled,), stop_at=90)
    _, recorder, trainer = run(tmp_path / "run", stop_at=100)
    assert isinstance(trainer._loop.parts.model.seed("s1").body, Twin)
    assert recorder.of(TwinChanged) == []
    shelf = Shelf(esper_home())
    archive = shelf.folder / f"{compiled.artifact}.kernel"
    whole = archive.read_bytes()
    archive.unlink()
    try:
        entries = read_journal(tmp_path / "run" / "journal.jsonl")
        with pytest.raises(InputError, match="cannot be loaded"):
            ReplayTrainer(recording_of(entries, 100), tmp_path / "replay").run()
        result, recorder, trainer = run(tmp_path / "run")
    finally:
        archive.write_bytes(whole)
    (lost,) = recorder.of(TwinChanged)
    assert (lost.kernel, lost.seed) == (None, "s1")
    assert result.outcome == "Complete"
    assert not isinstance(trainer._loop.parts.model.seed("s1").body, Twin)


@pytest.mark.usefixtures("any_twin_is_faster")
def test_without_a_library_a_twin_comes_from_the_shelf(compiled: UsableKernel, tmp_path: Path) -> None:
    class Waiting(Trainer):
        """It waits at a step for what the shelf has: a small run would be over before."""

        def _train(self, parts, opening, supply):
            step = self._observer.on_step

            def on_step(number, loss):
                step(number, loss)
                if number == KEPT:
                    eventually(lambda: supply.waiting or compiled.kernel in supply.known)
                    supply.cache.fill([compiled.artifact])

            self._observer.on_step = on_step
            return super()._train(parts, opening, supply)

    recorder = Recorder()
    trainer = Waiting(
        described("WhereFaster"), tmp_path / "run", recorder, controller=Script((10, IMMEDIATE))
    )
    recorder.trainer = trainer
    trainer.run()
    (event,) = recorder.of(TwinChanged)
    assert (event.seed, event.kernel, event.digest) == ("s1", compiled.kernel, compiled.digest)


def test_a_twin_that_is_not_faster_in_place_is_not_swapped_in(
    compiled: UsableKernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "TwinSource", lambda c, w, b: TwinSource(c, w, b, margin=1.4))
    figures = {"training_speedup": 1.5}
    _, recorder, _ = run(tmp_path / "run", (compiled.model_copy(update={"figures": figures}),))
    assert recorder.of(TwinChanged) == []
    assert [e.after for e in recorder.of(SeedChanged)][-1] is SeedStage.FOSSILIZED


def test_only_a_kernel_for_the_seeds_own_widths_is_wished_for(compiled: UsableKernel) -> None:
    narrow = slot(InterfaceKind.TOKENS, 5)
    assert not compiled.interface.contains(narrow)
    assert spec_for(compiled.blueprint, narrow, current_target(), Pipeline.STANDARD).kernel_id != (
        compiled.kernel
    )

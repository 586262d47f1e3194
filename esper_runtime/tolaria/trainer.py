"""Training a run in its folder: begin or go on, train, finish or stop with a checkpoint."""

from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import nn

from esper_runtime.contracts import (
    AbsorbWhen,
    ControllerKind,
    EsperError,
    Finished,
    InputError,
    Interrupted,
    KernelsArrived,
    KernelsGone,
    MorphogeneticRun,
    PeerLostError,
    RolledBack,
    RunFailedError,
    SlotSummary,
    Started,
    Steered,
    canonical_json,
)
from esper_runtime.planning import AlreadyComplete, Refuse, Resume
from esper_runtime.tamiyo import Controller, ControllerLink, RemoteController
from esper_runtime.tolaria.absorption import absorb_at_end
from esper_runtime.tolaria.checkpoint import SavedState
from esper_runtime.tolaria.environment import describe, prepared, seed_all
from esper_runtime.tolaria.followers import Beginning, JournalPosition, NoCheckpoints, hand_over, take_over
from esper_runtime.tolaria.forging import ForgingStoppedError
from esper_runtime.tolaria.group import Group, join
from esper_runtime.tolaria.journal import JournalWriter
from esper_runtime.tolaria.ledger import Purpose
from esper_runtime.tolaria.library import LibraryLink
from esper_runtime.tolaria.loop import Loop
from esper_runtime.tolaria.model_folder import check_output, digest_of, save_model
from esper_runtime.tolaria.opening import Opening, open_run, resume_from, seconds_of
from esper_runtime.tolaria.parts import Parts, build_parts
from esper_runtime.tolaria.randomness import derived_seed
from esper_runtime.tolaria.result import NoObserver, Observer, Result
from esper_runtime.tolaria.steering import Inbox, Steering
from esper_runtime.tolaria.stocking import follow_stocked, stocked
from esper_runtime.tolaria.supply import Supply
from esper_runtime.tolaria.tasks import Task

MODEL = "model"
KNOWN_TO_ALL = (Steered, KernelsArrived, KernelsGone)
"""Events that every rank needs from the journal when it begins."""


class Trainer:
    """Trains one run in one folder, from where it is to its end.

    Args:
        run: the manifest.
        folder: holds journal.jsonl, checkpoints/ and model/; it is made where it does not exist.
        observer: is told of steps and events.
        host: a model to use instead of the manifest's.
        task: a task to use instead of the manifest's.
        controller: decides instead of the manifest's.
        directory: the manifest's folder, for entrypoints and relative paths.
        commands: what people command, as it arrives; another thread may append to it.
        link: the way to a controller service, for manifests that place the controller there.
        library: the way to the machine's library of kernels, not started yet.
        makes_kernels: False where they come from the library only.
    """

    def __init__(
        self,
        run: MorphogeneticRun,
        folder: Path,
        observer: Observer | None = None,
        host: nn.Module | None = None,
        task: Task | None = None,
        controller: Controller | None = None,
        directory: Path | None = None,
        commands: Inbox | None = None,
        link: ControllerLink | None = None,
        library: LibraryLink | None = None,
        makes_kernels: bool = True,
    ) -> None:
        self._run = run
        self._folder = Path(folder)
        self._observer = observer or NoObserver()
        self._host, self._task, self._controller = host, task, controller
        self._directory = directory
        self._commands, self._link, self._library = commands, link, library
        self._makes_kernels = makes_kernels
        self._loop: Loop | None = None
        self._stop: str | None = None

    def request_stop(self, reason: str) -> None:
        """Stop with a checkpoint after the present step; may be called from a signal handler or a thread."""
        self._stop = reason
        if self._loop is not None:
            self._loop.stop = reason

    def run(self) -> Result:
        """Train until the run is complete or is told to stop.

        Raises:
            InputError: the manifest cannot work, or the folder belongs to another run.
            RunFailedError: the numbers went bad again and again; the journal says how.
            JournalError: the journal is damaged or cannot be written.
            CheckpointError: a checkpoint cannot be written, or belongs to another model.
            PeerLostError: another rank is gone; a new group goes on from the last checkpoint.
        """
        with prepared(self._run.spec.training) as device:
            group = join(self._run.spec.training.workers, device)
            try:
                return self._lead(group, device) if group.leads else self._follow(group, device)
            except PeerLostError:
                raise
            except EsperError:
                group.close()  # its threads, still at work when the process exits, could abort it
                raise

    def complete_before(self) -> Result | None:
        """The result of a run that was complete before, from its journal; None where there is work to do.

        Raises:
            InputError: the folder belongs to another run.
            JournalError: the journal is damaged.
        """
        opening = self._open()
        return self._complete_before(opening) if isinstance(opening.attempt, AlreadyComplete) else None

    def _open(self) -> Opening:
        opening = open_run(self._run, self._folder)
        if isinstance(opening.attempt, Refuse):
            raise InputError(f"{self._folder}: {opening.attempt.reason}")
        return opening

    def _lead(self, group: Group, device: torch.device) -> Result:
        """Train as rank 0, or as the only process."""
        opening = self._open()
        complete = isinstance(opening.attempt, AlreadyComplete)
        group.share(complete)
        if complete:
            return self._complete_before(opening)
        check_output(self._output)
        parts = self._parts(group, device)
        try:
            with self._stocked(parts, opening) as supply:
                return self._train(parts, opening, supply)
        except ForgingStoppedError:
            group.close()
            return self._stopped_before()

    def _stopped_before(self) -> Result:
        """It was told to stop while kernels were made ready; what is ready stays so."""
        reason = self._stop or "another rank was told to stop"
        return Result("Interrupted", reason, 0, self._folder, trained=False)

    def _stocked(self, parts: Parts, opening: Opening) -> AbstractContextManager[Supply]:
        """Inside, the model has its validated kernels, and its thread that loads them."""
        off = self._controller is None and self._run.spec.growth.controller.kind is ControllerKind.OFF
        return stocked(
            parts.model,
            opening.entries,
            grows=not off,
            told=self._observer.on_preparing,
            stopping=lambda: self._stop is not None,
            group=parts.group,
            selector=self._run.spec.growth.kernels,
            library=self._library,
            makes=self._makes_kernels,
            names=self._run.spec.growth.blueprints,
            innovation=self._run.spec.innovation,
        )

    def _train(self, parts: Parts, opening: Opening, supply: Supply) -> Result:
        self._folder.mkdir(parents=True, exist_ok=True)
        resumption = opening.attempt if isinstance(opening.attempt, Resume) else None
        incarnation = resumption.incarnation if resumption else 0
        with JournalWriter(opening.journal, incarnation) as journal:
            self._loop = self._new_loop(parts, journal, opening, supply)
            self._loop.stop = self._stop
            try:
                self._begin(self._loop, journal, opening, resumption)
                reason = self._loop.train()
                return self._finish(self._loop) if reason is None else self._interrupt(self._loop, reason)
            except RunFailedError as error:
                self._record_failure(self._loop, error)
                raise

    def _follow(self, group: Group, device: torch.device) -> Result:
        """Train as one of the other ranks, which keep no files: rank 0 tells where to begin."""
        if group.share(None):
            return Result("Complete", "it was complete before", 0, self._folder, trained=False)
        parts = self._parts(group, device)
        try:
            known, offer = follow_stocked(group, parts.model, lambda: self._stop is not None)
        except ForgingStoppedError:
            group.close()
            return self._stopped_before()
        beginning = take_over(group)
        journal = JournalPosition(beginning.incarnation, beginning.sequence)
        steering = Steering(None, beginning.known_to_all)
        supply = Supply(known, beginning.known_to_all, offer, self._run.spec.growth.kernels)
        self._loop = loop = Loop(parts, journal, NoCheckpoints(), self._observer, steering, supply)
        loop.stop = self._stop
        seed_all(derived_seed("rank", self._run.spec.training.random_seed, group.rank) % 2**32)
        if beginning.saved is not None:
            loop.resume(beginning.saved)
        loop.remember(beginning.faults)
        self._go_on(loop, beginning.saved is not None)
        reason = loop.train()
        if reason is not None:
            loop.last_checkpoint()
            group.close()
            return Result("Interrupted", reason, loop.step, self._folder, budget_used=loop.budget_used)
        loop.checkpoint()
        group.close()
        return Result("Complete", loop.converged or "all steps are done", loop.step, self._folder)

    def _parts(self, group: Group, device: torch.device) -> Parts:
        return build_parts(
            self._run, device, self._host, self._task, self._controller, self._directory, group
        )

    def _new_loop(self, parts: Parts, journal: JournalWriter, opening: Opening, supply: Supply) -> Loop:
        remote = self._remote(parts, journal.incarnation)
        if remote is not None:
            parts.controller = remote
        steering = Steering(self._commands, opening.entries)
        loop = Loop(parts, journal, opening.store, self._observer, steering, supply)
        if remote is not None:
            remote.journal = loop.record
        return loop

    def _remote(self, parts: Parts, incarnation: int) -> RemoteController | None:
        """The controller that asks the service, with the embedded one inside; None where it decides here."""
        growth = self._run.spec.growth
        if self._controller is not None or not growth.controller.asks_service:
            return None
        if self._link is None:
            raise InputError(
                "spec.growth.controller.placement is Service, and this process has no bus to reach it over; "
                "start it with `esper run` (without --no-bus), give Trainer a link, or choose Embedded"
            )
        return RemoteController(
            parts.controller,
            self._link,
            growth,
            parts.total_steps,
            self._run.metadata.name,
            incarnation,
            growth.controller.patience_seconds,
        )

    @property
    def _output(self) -> str:
        return self._run.spec.output.uri or str(self._folder / MODEL)

    def _complete_before(self, opening: Opening) -> Result:
        assert opening.finished is not None
        step, finished = opening.finished
        return Result("Complete", "it was complete before", step, self._folder, finished, trained=False)

    def _begin(self, loop: Loop, journal: JournalWriter, opening: Opening, resumption: Resume | None) -> None:
        """Put the loop in the state that the run is in, and journal how that came about."""
        parts = loop.parts
        environment = describe(parts.device) | {"ranks": str(parts.group.size)}
        seed_all(self._run.spec.training.random_seed)
        saved: SavedState | None = None
        faults: tuple[RolledBack, ...] = ()
        if resumption is not None:
            back = resume_from(opening, resumption, environment)
            saved, faults = back.saved, back.faults
            if saved is not None:
                loop.resume(saved)
            loop.remember(faults)
            loop.count_earlier(seconds_of(opening.entries))
            loop.record(back.event)
        if not any(isinstance(entry.event, Started) for entry in opening.entries):
            loop.record(_started(parts, opening, environment))
        shared = tuple(entry for entry in opening.entries if isinstance(entry.event, KNOWN_TO_ALL))
        hand_over(parts.group, Beginning(journal.incarnation, journal.sequence, shared, faults, saved))
        self._go_on(loop, saved is not None)

    def _go_on(self, loop: Loop, resumed: bool) -> None:
        """The first boundary; all ranks together, with the same weights."""
        if not resumed:
            loop.parts.group.follow((*loop.parts.model.parameters(), *loop.parts.model.buffers()))
            fault = loop.between_steps()
            if fault is not None:
                raise RunFailedError(f"before the first step {fault.what}; look at the host and the data")
        else:
            loop.learn_what_is_due()
            loop.governor.keep(loop.good_state())

    def _interrupt(self, loop: Loop, reason: str) -> Result:
        loop.last_checkpoint()
        loop.parts.group.close()
        loop.record(Interrupted(reason=reason))
        return Result("Interrupted", reason, loop.step, self._folder, budget_used=loop.budget_used)

    def _finish(self, loop: Loop) -> Result:
        """Touch the test set, the only time; write the model, then the last entry."""
        parts = loop.parts
        loop.checkpoint()
        parts.group.close()
        loop.report_kernels(parts.model.seeds)
        if loop.twins is not None and parts.run.spec.growth.lifecycle.absorb is AbsorbWhen.AT_END:
            loop.twins.detach("it is to be absorbed")
        absorb_at_end(parts, loop.record)
        test_loss, test_metric = parts.evaluate(parts.task.test, Purpose.TEST)
        digest = save_model(parts.model, self._run, parts.task, self._output)
        validation = loop.boundary.validations[-1]
        reason = loop.converged or f"all {loop.total_steps} steps are done"
        finished = _summary(loop, "Complete", reason).model_copy(
            update={
                "validation_loss": validation.loss,
                "validation_metric": validation.metric,
                "test_loss": test_loss,
                "test_metric": test_metric,
                "weights_digest": digest,
            }
        )
        loop.record(finished)
        return Result("Complete", reason, loop.step, self._folder, finished)

    def _record_failure(self, loop: Loop, error: EsperError) -> None:
        loop.record(_summary(loop, "Failed", str(error)))


def _started(parts: Parts, opening: Opening, environment: dict[str, str]) -> Started:
    manifest = dict(opening.manifest)
    return Started(
        run=parts.run.metadata.name,
        manifest=manifest,
        manifest_digest=digest_of(canonical_json(manifest)),
        environment=environment,
        total_steps=parts.total_steps,
        parameters=parts.model.host_parameters,
        macs_per_example=parts.model.host_macs,
        metric_name=parts.task.metric_name,
        higher_is_better=parts.task.higher_is_better,
        modules=parts.survey.modules,
        slots=tuple(
            SlotSummary(
                slot=place.id,
                read=str(place.read),
                write=str(place.write),
                position=place.position,
                interface=place.interface,
            )
            for place in parts.survey.places
        ),
    )


def _summary(loop: Loop, outcome: str, reason: str) -> Finished:
    parts = loop.parts
    wall, cpu = loop.seconds()
    return Finished(
        outcome="Complete" if outcome == "Complete" else "Failed",
        reason=reason,
        parameters_start=parts.model.host_parameters,
        parameters=parts.model.parameter_count(),
        macs_per_example=parts.model.macs_per_example(),
        ledger=parts.ledger.by_purpose,
        cpu_seconds=cpu,
        wall_seconds=wall,
        modules=parts.survey.modules,
    )

"""`esper run FILE`: a manifest trained in its folder, from the first step or from where it stopped."""

import contextlib
import errno
import os
import sys
import traceback
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from rich.console import Console

from esper_runtime.contracts import (
    EsperError,
    InputError,
    MorphogeneticRun,
    OutputFormat,
    OvertakenError,
    PeerLostError,
    RunFailedError,
    RunOnBus,
    Started,
)
from esper_runtime.local.changes import check_unchanged
from esper_runtime.local.children import IN_POD, SUPERVISED
from esper_runtime.local.comparison import compare_run
from esper_runtime.local.export import export_run, has_export
from esper_runtime.local.folder import RunFolder
from esper_runtime.local.logs import open_logs
from esper_runtime.local.look import look_at
from esper_runtime.local.on_bus import Both, connected, library_link
from esper_runtime.local.post import Post
from esper_runtime.local.progress import Progress
from esper_runtime.local.stop import StopSignals
from esper_runtime.local.supervisor import end_helpers
from esper_runtime.nissa import (
    Exposition,
    KeptJournal,
    RunState,
    StatusServer,
    TrainingMetrics,
    count,
    read_journal,
    render_report,
    summarise,
)
from esper_runtime.oona import Bridge, BusAddress
from esper_runtime.planning import EXIT_BUDGET
from esper_runtime.tolaria import (
    BusObserver,
    CheckpointStore,
    Observer,
    Result,
    Trainer,
    fetch_journal,
    raised_in_user_code,
    replace_file,
)

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_INTERRUPTED = 75
EXIT_PEER_LOST = 76

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EISDIR)
"""Errors of a file that cannot be written: the disk is full, or it may not be."""


def run_manifest(
    run: MorphogeneticRun,
    manifest: Path,
    runs_dir: Path,
    *,
    fresh: bool = False,
    compare: bool = False,
    bus: BusAddress | None = None,
    listen: tuple[str, int] | None = None,
    console: Console | None = None,
) -> int:
    """Train, resume, or leave alone what is complete; then compare if wanted, and write the report.

    Args:
        run: what ``manifest`` describes.
        manifest: the file; entrypoints and relative paths are looked for in its folder.
        runs_dir: the run's folder is ``runs_dir / NAME``.
        fresh: move aside what an earlier run of that name left.
        compare: train plain models beside it afterwards.
        bus: which the run is on; None for none.
        listen: host and port of ``/healthz`` and ``/metrics``; None for no such server.
        console: where progress goes; default: standard output.

    Returns:
        Exit code: 0 done, 1 the run failed, 75 interrupted with a checkpoint, 76 another rank was lost; in a
        pod 77 where it was interrupted because `spec.budget` is used up.

    Raises:
        InputError: the run cannot work as described; what was there before is as it was.
    """
    directory = manifest.resolve().parent
    folder = RunFolder(runs_dir / run.metadata.name)
    progress = Progress(console)
    grace = run.spec.checkpoint.grace_seconds
    if os.environ.get("RANK", "0") != "0":
        with StopSignals(progress.say, grace) as signals:
            return _follow(run, folder, directory, signals)
    with StopSignals(progress.say, grace) as signals, contextlib.ExitStack() as stack:
        if SUPERVISED in os.environ:
            stack.callback(end_helpers, folder)
        else:
            stack.enter_context(folder.held())
            if bus is not None:
                stack.enter_context(_findable(bus, folder.bus_address))
        if fresh and folder.started:
            look_at(run, directory)
            _check_fresh(run, folder.journal)
            progress.say(f"the earlier run is kept in {folder.set_aside()}")
        try:
            fetch_journal(run, folder.path, progress.say)
            with progress.shown(), connected(bus, run.metadata.name, folder.journal, progress.say) as bridge:
                return _go(run, manifest, folder, directory, progress, signals, compare, bridge, listen)
        except PeerLostError as error:
            progress.say(str(error))
            return EXIT_PEER_LOST
        except OvertakenError as error:
            progress.say(str(error))
            return EXIT_INTERRUPTED
        except EsperError as error:
            if not folder.started and not isinstance(error, RunFailedError):
                raise InputError(str(error)) from error
            _write_report(folder)
            raise
        except OSError as error:
            if error.errno not in _DISK:
                raise
            raise RunFailedError(
                f"{error.filename or folder.path}: {error.strerror}; once it can be written, start the "
                f"run again: it goes on from its last checkpoint"
            ) from error
        except Exception as error:
            if not folder.started:
                raise
            folder.error_log.write_text(traceback.format_exc())
            place = raised_in_user_code(error)
            whose = f"in your own code ({place})" if place else "in Esper itself"
            print(
                f"esper: an error {whose}: {type(error).__name__}: {error}\n"
                f"the traceback is in {folder.error_log}; what was trained up to the last checkpoint is kept",
                file=sys.stderr,
            )
            return EXIT_FAILED


@contextlib.contextmanager
def _findable(bus: BusAddress, file: Path) -> Iterator[None]:
    """Inside, the folder says where the bus is, for who commands the run; a supervisor does so itself."""
    bus.store(file)
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


def _follow(run: MorphogeneticRun, folder: RunFolder, directory: Path, signals: StopSignals) -> int:
    """Train as one of several ranks, of which the first holds the folder and speaks."""
    trainer = Trainer(run, folder.path, directory=directory)
    signals.forward(trainer.request_stop)
    try:
        result = trainer.run()
        return _interrupted(result) if result.outcome == "Interrupted" else EXIT_DONE
    except PeerLostError as error:
        print(error, file=sys.stderr)
        return EXIT_PEER_LOST


def _interrupted(result: Result) -> int:
    """Exit code of a run that is to go on later; in a pod, the operator tells apart why."""
    return EXIT_BUDGET if result.budget_used and _in_pod() else EXIT_INTERRUPTED


def _in_pod() -> bool:
    return os.environ.get(SUPERVISED) == IN_POD


def _check_fresh(run: MorphogeneticRun, journal: Path) -> None:
    """Checkpoints outside of the run's folder are not moved aside with it."""
    uri = run.spec.checkpoint.uri
    kept = KeptJournal(uri, RunOnBus.of(run.metadata.name).run, journal)
    if uri is not None and (CheckpointStore(uri, keep=1).saved() or kept.entries()):
        raise InputError(
            f"spec.checkpoint.uri {uri!r} holds the earlier run's checkpoints or journal, which --fresh does "
            "not move; give another one, or remove them"
        )


def _go(
    run: MorphogeneticRun,
    manifest: Path,
    folder: RunFolder,
    directory: Path,
    progress: Progress,
    signals: StopSignals,
    compare: bool,
    bridge: Bridge | None,
    listen: tuple[str, int] | None,
) -> int:
    entries = read_journal(folder.journal) if folder.started else []
    if folder.started:
        complete = bool(entries) and summarise(entries).state is RunState.COMPLETE
        for started in [entry.event for entry in entries if isinstance(entry.event, Started)][-1:]:
            check_unchanged(run, started, manifest, complete)
        progress.view.note_earlier(entries)
        if not complete:
            progress.say(f"run {run.metadata.name!r} is unfinished; going on with it")
    folder.keep_manifest(manifest)
    post = None if bridge is None else Post(bridge, run.metadata.name, folder.journal)
    library = library_link(run.metadata.name) if bridge is not None else None
    if run.spec.innovation.enabled and library is None:
        progress.say("spec.innovation.enabled is true, but this run has no bus: nothing is invented for it")
    observer: Observer = progress if bridge is None else Both(progress, BusObserver(bridge, entries, library))
    metrics = TrainingMetrics(entries, None if bridge is None else partial(_on_bus, bridge))
    if listen is not None:
        observer = Both(observer, metrics)
    logs = open_logs(run, folder.path, progress.say)
    trainer = Trainer(
        run,
        folder.path,
        observer=observer if logs is None else Both(observer, logs),
        directory=directory,
        commands=post,
        link=None if post is None else post.link,
        library=library,
        makes_kernels=not _in_pod(),
    )
    signals.forward(trainer.request_stop)
    with contextlib.ExitStack() as stack:
        if logs is not None:
            stack.callback(logs.close)
        if listen is not None:
            status = StatusServer(*listen, lambda: None, Exposition(metrics).text)
            stack.enter_context(status)
            progress.say(f"metrics at http://{status.host}:{status.port}/metrics")
        # In a pod, the other ranks have gone home when a run is complete: nobody would answer.
        result = (trainer.complete_before() if _in_pod() else None) or trainer.run()
        signals.saved()
    if result.outcome == "Interrupted":
        _write_report(folder)
        if not result.trained:
            progress.say(f"interrupted ({result.reason}) before the first step; the same command goes on")
            return EXIT_INTERRUPTED
        place = run.spec.checkpoint.uri or folder.checkpoints
        progress.say(
            f"interrupted at step {result.step} ({result.reason}) with a checkpoint in {place}; "
            f"the same command goes on from there"
        )
        return _interrupted(result)
    if not result.trained:
        progress.say(f"run {run.metadata.name!r} is complete; --fresh begins it again and keeps the old one")
    output = run.spec.output.uri or str(folder.model)
    for kind in run.spec.output.formats:
        if kind is not OutputFormat.SAFETENSORS and (result.trained or not has_export(output, kind)):
            exported = export_run(folder, kind, output)
            progress.say(f"exported to {', '.join(exported.files)} (difference {exported.difference:.1e})")
    if compare and not compare_run(run, folder, directory, progress, signals.stopping):
        _write_report(folder)
        progress.say("the run is complete; its comparison is not: the same command goes on with it")
        return EXIT_INTERRUPTED
    _write_report(folder)
    _tell_result(folder, progress)
    return EXIT_DONE


def _on_bus(bridge: Bridge) -> tuple[bool, int]:
    """Whether the bus is connected, and how many samples were dropped."""
    return bridge.status().connected, bridge.counts().telemetry.dropped


def _tell_result(folder: RunFolder, progress: Progress) -> None:
    """The run in a few lines, the arms beside it, and where everything is."""
    summary = summarise(read_journal(folder.journal))
    metric = summary.metric
    progress.say(f"\n{summary.headline}", style="bold")
    if summary.comparisons and summary.test_metric is not None:
        rows = [("this run", summary.parameters, summary.test_metric)]
        rows += [(arm.description, arm.parameters, arm.test_metric) for arm in summary.comparisons]
        for name, parameters, value in rows:
            progress.say(f"  {metric.text(value):>10}  {count(parameters):>9} parameters  {name}")
    progress.say(f"journal {folder.journal}, model {folder.model}, report {folder.report}")


def _write_report(folder: RunFolder) -> None:
    """Write the report of what the journal holds; a damaged journal has been reported already."""
    if folder.started:
        with contextlib.suppress(EsperError, OSError):
            replace_file(folder.report, render_report(read_journal(folder.journal)).encode())

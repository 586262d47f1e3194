"""What a manifest needs running: trainers, a bus, and where it says so the controller service."""

import secrets
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

from esper_runtime.contracts import ControllerKind, InputError, MorphogeneticRun
from esper_runtime.local.children import Port, esper_command, log_file
from esper_runtime.local.folder import RunFolder
from esper_runtime.local.helpers import BusProcess, Helper, LibraryProcess, ServiceProcess
from esper_runtime.local.home import FORGE_VARIABLE, HomeBus, forge_table
from esper_runtime.local.parent import PARENT, Parent
from esper_runtime.local.processes import ProcessRecord
from esper_runtime.local.supervisor import Job, supervise
from esper_runtime.oona import BUS_VARIABLE, LIBRARY_VARIABLE, BusAddress, BusRole

NO_BUS = "The training goes on without it: nothing is sent, and nothing can be commanded"
NO_LIBRARY = "The training goes on with the kernels that it has; no new ones are made"
NO_SERVICE = "The training goes on; its embedded controller decides"


def supervise_manifest(
    run: MorphogeneticRun,
    manifest: Path,
    runs_dir: Path,
    *,
    fresh: bool = False,
    options: Sequence[str] = (),
    bus: str | None = "",
    forge_workers: int | None = None,
    say: Callable[[str], None] = print,
) -> int:
    """Run a manifest as processes: a bus of its own, the trainers, and the controller service if wanted.

    Args:
        run: what ``manifest`` describes.
        manifest: the file.
        runs_dir: the run's folder is ``runs_dir / NAME``.
        fresh: begin again.
        options: further options of `esper run` for the trainers.
        bus: URL or address file of a bus that is there, the library's too; empty: start one, and use the
            library of this machine; None: there is none, nor a library.
        forge_workers: how many workers of the forge may work at a time; 0: no forge is started, and what the
            run lacks is made by itself unless another run's forge does it; None: the default.
        say: prints a line.

    Returns:
        Exit code: 0 done, 1 failed, 2 wrong input, 75 interrupted with a checkpoint, 130 quit.

    Raises:
        InputError: another process trains the run, or the bus cannot be what is described.
        ArtifactError: the machine's folder cannot be used.
    """
    folder = RunFolder(runs_dir / run.metadata.name)
    workers = run.spec.training.workers
    serving = str(run.spec.growth.controller.placement) == "Service"
    if serving and bus is None:
        raise InputError("spec.growth.controller.placement is Service, which needs a bus: leave out --no-bus")
    with ExitStack() as held:
        helpers: list[Helper] = []
        address = None
        environment = {
            BUS_VARIABLE: "",
            LIBRARY_VARIABLE: "",
            FORGE_VARIABLE: "",
        }  # also where the person's own names one
        started: Callable[[ProcessRecord], None] | None = None
        if bus is not None:
            address = (
                BusAddress.named(bus, "--bus") if bus else _own_address(held.enter_context(closing(Port())))
            )
            environment[BUS_VARIABLE] = str(folder.bus_address.resolve())
            if not bus:
                helpers.append(Helper("bus", BusProcess(folder.bus_store, address), NO_BUS))
            if serving:
                command = [*esper_command(), "tamiyo", "serve"]
                service = ServiceProcess("controller", command, environment, folder.logs / "controller.log")
                helpers.append(Helper("controller service", service, NO_SERVICE))
            if run.spec.growth.controller.kind is not ControllerKind.OFF:
                home = HomeBus("run")
                if not bus:
                    helpers.append(
                        Helper("library", LibraryProcess(home), NO_LIBRARY, shared=True, early=True)
                    )
                    started = home.add
                training = folder.bus_address if bus else home.file_of(BusRole.TRAINING)
                environment[LIBRARY_VARIABLE] = str(training.resolve())
                if forge_workers == 0 and not bus:
                    environment[FORGE_VARIABLE] = str(forge_table(home.home).resolve())
                elif forge_workers != 0 and not _of_run(address):
                    helpers.append(_forge(home.home, training if bus else None, forge_workers))
        return supervise(
            Job(
                folder=folder,
                command=(*esper_command(), "run", str(manifest), "--runs-dir", str(runs_dir), *options),
                ranks=workers.count * workers.processes_per_worker,
                ranks_per_worker=workers.processes_per_worker,
                grace_seconds=run.spec.checkpoint.grace_seconds,
                say=say,
                once=("--fresh",) if fresh else (),
                address=address,
                environment=environment,
                helpers=helpers,
                started=started,
            )
        )


def _forge(home: Path, bus: Path | None, workers: int | None) -> Helper:
    command = [*esper_command(), "forge", "serve"]
    if workers is not None:
        command += ["--workers", str(workers)]
    if bus is not None:
        command += ["--bus", str(bus.resolve())]
    log = log_file(home / "logs" / "forge.log")
    process = ServiceProcess("forge", command, {PARENT: Parent.me().text}, log)
    return Helper("forge", process, NO_LIBRARY, early=True)


def _of_run(address: BusAddress | None) -> bool:
    """Whether the address is a run's on a cluster, where the forge is not this machine's."""
    mine = None if address is None else address.read_credentials()
    return mine is not None and mine.of_run


def _own_address(port: Port) -> BusAddress:
    return BusAddress(url=f"nats://127.0.0.1:{port.number}", token=secrets.token_urlsafe(32))

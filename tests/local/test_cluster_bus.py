"""`esper run` with the credentials of a run on a cluster, against a bus with a cluster's configuration."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.cluster_server import ClusterServer
from esper_runtime.artifact import KeyRing
from esper_runtime.blueprint import canonical_id, catalogue
from esper_runtime.cli.app import invoke
from esper_runtime.contracts import (
    STEERING_TYPE,
    Blueprint,
    Channel,
    CloudEvent,
    KernelWish,
    Steer,
    SteeringCommand,
    run_subject,
)
from esper_runtime.local import RunFolder
from esper_runtime.nissa import read_journal
from esper_runtime.oona import BusKeeper, Tail, publish_event
from esper_runtime.urza import Carrier, Library
from tests.cli.manifests import write

UID = "0123abcd-1111-2222-3333-444444444444"
NAME = "small-0123abcd"
SECONDS = 60.0


def own() -> Blueprint:
    """A blueprint that is not in the catalogue."""
    graph = catalogue()["mlp"]
    nodes = [n.model_copy(update={"op": "tanh"}) if n.op in ("relu", "gelu") else n for n in graph.nodes]
    return graph.model_copy(update={"name": "mine", "nodes": tuple(nodes)})


def begin(folder: Path, server: ClusterServer) -> subprocess.Popen[bytes]:
    """A long run in a process of its own, as in a pod: its place on the bus is in the environment."""
    (folder / "user.creds").write_text(server.keys.run_creds("team", "small", UID, 1))
    address = {"url": server.url, "credentials": str(folder / "user.creds"), "tlsCa": server.ca}
    (folder / "bus.json").write_text(json.dumps(address))
    path = write(
        folder,
        ("spec.training.steps", 500_000),
        ("spec.growth.blueprints.include", ["mine", "attention"]),  # nothing to be made before the first step
    )
    place = {"ESPER_NAMESPACE": "team", "ESPER_RUN": "small", "ESPER_RUN_UID": UID, "OMP_NUM_THREADS": "1"}
    command = ["run", str(path), "--runs-dir", str(folder / "runs"), "--bus", str(folder / "bus.json")]
    with (folder / "said.txt").open("wb") as said:
        return subprocess.Popen(
            [sys.executable, "-m", "esper_runtime.cli", *command],
            stdout=said,
            stderr=said,
            env={**os.environ, **place},
        )


async def until(process: subprocess.Popen[bytes], what: Callable[[], Awaitable[Any]]) -> Any:
    deadline = time.monotonic() + SECONDS
    while not (found := await what()):
        assert process.poll() is None, "it has ended"
        assert time.monotonic() < deadline, "it did not come about"
        await asyncio.sleep(0.05)
    return found


async def watched(server: ClusterServer, process: subprocess.Popen[bytes], home: Path) -> list[str]:
    """See progress arrive and wishes for what is in the library, then stop the run.

    Returns:
        Digests of the entries in the journal's copy.
    """
    async with server.keeper() as keeper:
        team = await keeper.namespace("team")
        library = Library(await keeper.core(), KeyRing(home).trust, keeper=True)
        mine = await library.enter(own())
        carrier = Carrier(team, library)

        async def progress() -> bool:
            info = await team.jetstream().stream_info("PROGRESS", subjects_filter=">")
            return set(info.state.subjects or ()) == {run_subject("team", NAME, Channel.PROGRESS)}

        async def wished() -> list[KernelWish]:
            await carrier.carry()
            return [wish for wish in (await library.wishes()).values() if wish.spec.blueprint == mine]

        await until(process, progress)
        await until(process, wished)
        assert not carrier.ignored
        command = SteeringCommand(id="s", run="small", command=Steer.STOP, by="ada")
        event = CloudEvent.new(STEERING_TYPE, "/operator", command, "s")
        await publish_event(team, run_subject("team", NAME, Channel.DIRECTIVE), event, patience=5)
        code = await asyncio.to_thread(process.wait, SECONDS)
        assert code == 75
        kept = await Tail(team.jetstream(), "EVENTS").read()
        journal = run_subject("team", NAME, Channel.JOURNAL)
        return [json.loads(one.data)["data"]["digest"] for one in kept if one.subject == journal]


def test_a_run_on_a_cluster_is_copied_seen_served_and_stopped(tmp_path: Path, machine_home: Path) -> None:
    with ClusterServer(tmp_path / "bus") as server:

        async def prepare(keeper: BusKeeper) -> None:
            async with keeper:
                await keeper.prepare_core()
                await keeper.prepare_run("team", "small", UID, 1)

        asyncio.run(prepare(server.keeper()))
        process = begin(tmp_path, server)
        try:
            copied = asyncio.run(watched(server, process, machine_home))
        except AssertionError as error:
            raise AssertionError((tmp_path / "said.txt").read_text()) from error
        finally:
            process.kill()
            process.wait()
    entries = read_journal(RunFolder(tmp_path / "runs" / "small").journal)
    assert copied == [entry.digest for entry in entries]


def test_a_run_is_not_trained_in_the_pod_of_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("ESPER_NAMESPACE", "team")
    monkeypatch.setenv("ESPER_RUN", "large")
    monkeypatch.setenv("ESPER_RUN_UID", UID)
    path = write(tmp_path)
    command = ["run", str(path), "--runs-dir", str(tmp_path / "runs"), "--bus", "nats://127.0.0.1:9"]
    assert invoke(command) == 2
    assert "ESPER_RUN says that this is run 'large'" in capsys.readouterr().err


def test_the_blueprint_of_these_tests_is_no_ones_else() -> None:
    assert canonical_id(own()) not in {canonical_id(graph) for graph in catalogue().values()}

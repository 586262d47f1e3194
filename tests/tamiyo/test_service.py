import asyncio
import os
import subprocess
import sys

import pytest

from benchmarks.cluster_server import ClusterServer
from esper_runtime.contracts import (
    Channel,
    CloudEvent,
    EventType,
    Operation,
    Question,
    RunOnBus,
    name_on_bus,
    run_subject,
)
from esper_runtime.oona import BundledServer, BusAddress, connect, ensure_streams
from tests.tamiyo.services import GROWTH, Run, Service
from tests.tamiyo.world import World, prospect


@pytest.fixture(scope="module")
def bus(tmp_path_factory):
    with BundledServer(tmp_path_factory.mktemp("bus")) as server:

        async def make():
            client = await connect(server.address, "test")
            await ensure_streams(client.jetstream())
            await client.close()

        asyncio.run(make())
        yield server


def world(total=200_000):
    """Long enough that it does not end before the test."""
    return World(
        [prospect("a", "good", 500, 0.06), prospect("b", "fair", 400, 0.03)],
        total=total,
        every=20,
        loss=lambda step: max(2.0 - 0.015 * step, 1.1) - 5e-7 * step,
    )


def decided_by_service(run):
    return run.controller.name.endswith("(service)")


def send(bus, subject, *payloads):
    async def go():
        client = await connect(bus.address, "test")
        for payload in payloads:
            await client.publish(subject, payload)
        await client.close()

    asyncio.run(go())


def test_a_service_decides_for_a_run_outlives_nonsense_and_ends_in_order(bus):
    state = run_subject("local", "first", Channel.STATE)
    nonsense = CloudEvent.new(EventType.QUESTION, "/test", {"run": "first"})
    question = Question(
        run="first",
        asker="x",
        incarnation=0,
        epoch=1,
        number=1,
        growth=GROWTH,
        total_steps=100,
        state=world().state(),
        memory={"unheard": "of"},
    )
    elsewhere = question.model_copy(update={"run": "second", "memory": {}})
    with Service(bus.address_file).until_healthy() as service:
        send(
            bus,
            state,
            b"\xff\x00 rubbish",
            nonsense.encoded(),
            CloudEvent.new(EventType.QUESTION, "/test", question).encoded(),
            CloudEvent.new(EventType.QUESTION, "/test", elsewhere).encoded(),
        )
        with Run(bus.address, "first", world(2000)) as run:
            run.until(lambda: decided_by_service(run) and service.metric("esper_tamiyo_decisions_total") >= 0)
            run.until(lambda: bool(run.world.commands(Operation.GERMINATE)), pace=0.05)
        assert service.metric('esper_tamiyo_refused_questions_total{why="malformed"}') == 3
        assert service.metric('esper_tamiyo_refused_questions_total{why="undecidable"}') == 1
        assert service.metric('esper_tamiyo_decisions_total{kind="directives"}') >= 1
        assert service.metric("esper_tamiyo_runs_seen") == 1
        assert service.metric("esper_tamiyo_decision_seconds_count") >= 2
        assert service.get("/healthz") == (200, "ok\n")
        assert service.end() == 0
    assert run.handovers == []
    assert run.refusals == []
    assert run.longest < 0.1


def test_a_service_decides_for_a_run_of_a_cluster_whose_name_on_the_bus_has_its_uid(tmp_path):
    uid = "0123abcd-1111-2222-3333-444444444444"
    with ClusterServer(tmp_path / "bus") as server:

        async def prepare():
            async with server.keeper() as keeper:
                await keeper.prepare_core()
                await keeper.prepare_run("team", "small", uid, 1)

        asyncio.run(prepare())
        credentials = tmp_path / "user.creds"
        credentials.write_text(server.keys.operator_creds("team"))
        BusAddress(url=server.url, tls_ca=server.ca, credentials=str(credentials)).store(
            tmp_path / "bus.json"
        )
        place = RunOnBus("team", name_on_bus("small", uid))
        with (
            Service(tmp_path / "bus.json").until_healthy() as service,
            Run(server.address_of_run("team", "small", uid), "small", world(2000), place=place) as run,
        ):
            run.until(lambda: decided_by_service(run))
            assert service.metric('esper_tamiyo_refused_questions_total{why="malformed"}') == 0
        assert run.refusals == []


def test_when_the_only_service_is_killed_the_embedded_controller_takes_over_until_it_is_back(bus):
    with Run(bus.address, "killed", world(), patience=1.0) as run:
        with Service(bus.address_file).until_healthy() as service:
            run.until(lambda: decided_by_service(run))
            service.kill()
            run.until(lambda: run.handovers == ["Embedded"])
            assert run.controller.epoch == 2
        with Service(bus.address_file):
            run.until(lambda: run.handovers == ["Embedded", "Service"] and decided_by_service(run))
        assert run.controller.epoch == 3
        assert run.longest < 0.1


def test_two_services_share_the_runs_and_the_death_of_one_changes_nothing(bus):
    with (
        Service(bus.address_file).until_healthy() as one,
        Service(bus.address_file).until_healthy() as two,
        Run(bus.address, "shared", world()) as run,
    ):
        run.until(lambda: min(s.metric("esper_tamiyo_decision_seconds_count") for s in (one, two)) >= 3)
        one.kill()
        answered = two.metric("esper_tamiyo_decision_seconds_count")
        run.until(lambda: two.metric("esper_tamiyo_decision_seconds_count") >= answered + 10)
        assert run.handovers == []
        assert run.refusals == []


def test_health_says_why_it_does_not_work_while_the_bus_is_away(tmp_path):
    with BundledServer(tmp_path) as server, Service(server.address_file).until_healthy() as service:
        server.stop()
        status, text = 200, ""
        with Run(server.address, "away", world(), patience=0.2) as run:
            run.until(lambda: service.get("/healthz")[0] == 503 and run.handovers == ["Embedded"])
            status, text = service.get("/healthz")
            assert status == 503
            assert "not connected to the bus at nats://127.0.0.1" in text
            server.restart()
            service.until_healthy()
            run.until(lambda: run.handovers == ["Embedded", "Service"])
        assert run.longest < 0.1


def test_a_bus_that_is_not_named_or_makes_no_sense_is_wrong_input(tmp_path):
    command = [sys.executable, "-m", "esper_runtime.cli", "tamiyo", "serve"]
    environment = {name: value for name, value in os.environ.items() if name != "ESPER_BUS"}
    for arguments, words in (
        ([], "no bus is named"),
        (["--bus", "http://x"], "must be like nats://HOST:4222"),
        (["--bus", str(tmp_path / "none.json")], "cannot be read"),
        (["--bus", "nats://127.0.0.1:1", "--listen", "nowhere"], "no HOST:PORT"),
    ):
        done = subprocess.run(
            [*command, *arguments], env=environment, capture_output=True, text=True, timeout=30, check=False
        )
        assert done.returncode == 2
        assert words in done.stderr


def test_the_service_imports_no_torch():
    script = (
        "import sys, esper_runtime.tamiyo.service, esper_runtime.cli.tamiyo; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0

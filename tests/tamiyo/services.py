"""Real service processes, and runs that ask them over a real bus."""

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from esper_runtime.contracts import LOCAL_NAMESPACE, AnswerRefused, ControllerChanged, Event, Growth, RunOnBus
from esper_runtime.local.post import Post
from esper_runtime.oona import BUS_VARIABLE, Bridge, BusAddress
from esper_runtime.tamiyo import HeuristicController, RemoteController
from tests.tamiyo.world import World

GROWTH = Growth.model_validate({"controller": {"trialShare": 10}})


class Service:
    """`esper tamiyo serve` in a process of its own."""

    def __init__(self, address_file: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "esper_runtime.cli", "tamiyo", "serve", "--listen", "127.0.0.1:0"],
            env={**os.environ, BUS_VARIABLE: str(address_file)},
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stderr is not None
        self.log: list[str] = []
        for line in self.process.stderr:
            self.log.append(line)
            if line.startswith("status: "):
                break
        self.url = self.log[-1].split()[1].removesuffix("/healthz")

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(self.url + path, timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def metric(self, line_start: str) -> float:
        lines = self.get("/metrics")[1].splitlines()
        return next(float(line.rpartition(" ")[2]) for line in lines if line.startswith(line_start))

    def until_healthy(self) -> "Service":
        wait_for(lambda: self.get("/healthz")[0] == 200)
        return self

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(5)

    def end(self) -> int:
        self.process.terminate()
        return self.process.wait(10)

    def __enter__(self) -> "Service":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(5)
        assert self.process.stderr is not None
        self.process.stderr.close()


class Run:
    """A run in a world without a network, whose controller asks over the bus."""

    def __init__(
        self,
        address: BusAddress,
        name: str,
        world: World,
        patience: float = 20.0,
        place: RunOnBus | None = None,
    ) -> None:
        self.world, self.events, self.longest = world, list[Event](), 0.0
        place = place or RunOnBus(LOCAL_NAMESPACE, name)
        self.bridge = Bridge(address, place.namespace, place.run, place.source)
        self.post = Post(self.bridge, name)
        self.controller = RemoteController(
            HeuristicController(GROWTH, world.total),
            self.post.link,
            GROWTH,
            world.total,
            name,
            patience_seconds=patience,
        )
        self.controller.journal = self.events.append

    def __enter__(self) -> "Run":
        self.bridge.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bridge.close(0.5)

    def boundary(self) -> None:
        """One boundary; the step goes on to the next one."""
        self.post.refresh()
        self.world.boundary(self)
        self.world.step += self.world.every

    def decide(self, state):
        started = time.perf_counter()
        decision = self.controller.decide(state)
        self.longest = max(self.longest, time.perf_counter() - started)
        return decision

    def until(self, reached: Callable[[], bool], seconds: float = 30.0, pace: float = 0.01) -> None:
        """Boundaries, ``pace`` seconds apart, until something is so; time stands still at the world's end."""

        def one() -> bool:
            if self.world.step < self.world.total - self.world.every:
                self.boundary()
            return reached()

        wait_for(one, seconds, pace)

    @property
    def handovers(self) -> list[str]:
        return [e.after for e in self.events if isinstance(e, ControllerChanged)]

    @property
    def refusals(self) -> list[AnswerRefused]:
        return [e for e in self.events if isinstance(e, AnswerRefused)]


def wait_for(so: Callable[[], bool], seconds: float = 30.0, pace: float = 0.02) -> None:
    deadline = time.monotonic() + seconds
    while not so():
        assert time.monotonic() < deadline, f"not so within {seconds:g} s"
        time.sleep(pace)

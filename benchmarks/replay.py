"""22 recorded runs, with kills, rollbacks and a controller service, replayed: the same weights?

In 12 of them the supervisor runs trainer, bus and `esper tamiyo serve`; in the others scripts make rare
things happen. Control: a replay of another run's journal, which must be found to differ.
"""

import json
import math
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks import replay_served
from benchmarks.line import bar
from esper_runtime.contracts import (
    Decision,
    Directive,
    Resumed,
    RolledBack,
    Steer,
    SteeringCommand,
    SystemState,
)
from esper_runtime.local.folder import RunFolder
from esper_runtime.local.replay import Replayed, replay_run
from esper_runtime.nissa import read_journal
from esper_runtime.tolaria import Inbox, Trainer
from tests.tolaria.runs import IMMEDIATE, ISOLATED, Poisoned, Recorder, Script, digits, manifest

COMMAND = "python -m benchmarks.replay"
STEPS = 120


class Late(Script):
    """Answers as a service would: what it decided at a boundary arrives some boundaries later."""

    name = "Late"

    def __init__(self, *plants: Any, delay: int) -> None:
        super().__init__(*plants)
        self.delay, self.waiting = delay, list[tuple[int, tuple[Directive, ...]]]()

    def decide(self, state: SystemState) -> Decision:
        """Give what has arrived, and send the next question when none is under way."""
        if not self.waiting:
            self.waiting.append((state.step + self.delay, super().decide(state).directives))
        due = [directives for step, directives in self.waiting if step <= state.step]
        self.waiting = [item for item in self.waiting if item[0] > state.step]
        arrived = tuple(directive for directives in due for directive in directives)
        return Decision(directives=arrived, explanation="an answer" if due else "waiting for the service")

    def state(self) -> dict[str, Any]:
        """The script's, and what is under way."""
        under_way = [[s, [d.model_dump(mode="json") for d in ds]] for s, ds in self.waiting]
        return {**super().state(), "waiting": under_way}

    def restore(self, data: dict[str, Any]) -> None:
        """Go on from there."""
        super().restore(data)
        self.waiting = [(s, tuple(map(Directive.model_validate, ds))) for s, ds in data["waiting"]]


class Incidents(Recorder):
    """Kills the process or spoils a seed at a step, once; sends a command at another."""

    def __init__(self, what: dict[str, Any], folder: Path, inbox: Inbox) -> None:
        super().__init__()
        self.what, self.folder, self.inbox = what, folder, inbox
        self.trainer: Trainer | None = None

    def _once(self, name: str, step: int) -> bool:
        mark = self.folder.with_name(f"{self.folder.name}.{name}.{step}")
        if step not in self.what.get(name, ()) or mark.exists():
            return False
        mark.touch()
        return True

    def on_step(self, step: int, loss: float) -> None:
        """What is to happen at this step."""
        super().on_step(step, loss)
        if self._once("kill", step):
            signal.raise_signal(signal.SIGKILL)
        assert self.trainer is not None
        seeds = list(self.trainer._loop.parts.model.seeds) if self.trainer._loop else []
        if seeds and self._once("explode", step):
            with torch.no_grad():
                for parameter in seeds[0].body.parameters():
                    parameter.mul_(1e3).add_(1e4)
        if seeds and self._once("veto", step):
            self.inbox.append(
                SteeringCommand(
                    id=f"v{step}", run="small", command=Steer.VETO, slot=seeds[-1].slot, by="bench"
                )
            )
        if self._once("pin", step):
            self.inbox.append(SteeringCommand(id=f"p{step}", run="small", command=Steer.PIN, by="bench"))


CASES: dict[str, dict[str, Any]] = {
    "heuristic, killed": {"kill": [70]},
    "both, killed three times": {"script": "both", "kill": [20, 57, 101]},
    "killed before the first checkpoint": {"script": "immediate", "kill": [13]},
    "isolated, pinned": {"script": "isolated", "pin": [45]},
    "bad batch, killed": {"script": "both", "poison": 700, "kill": [90]},
    "bad batch, killed right after": {"script": "both", "poison": 3, "kill": [33, 66]},
    "seed explodes, killed": {"script": "later", "explode": [37], "kill": [60]},
    "veto, killed": {"script": "both", "veto": [16], "kill": [21, 80]},
    "late answers, bad batch, killed": {"script": "late", "delay": 9, "poison": 3, "kill": [71]},
    "early stopping": {"script": "both", "patience": 2},
}


def train(case: dict[str, Any], folder: Path) -> None:
    """Train one case, in this process; may kill it."""
    torch.set_num_threads(1)
    scripts = {
        "immediate": lambda: Script((10, IMMEDIATE), (60, IMMEDIATE)),
        "isolated": lambda: Script((10, ISOLATED)),
        "both": lambda: Script((10, IMMEDIATE), (40, ISOLATED), cull=("s2",)),
        "later": lambda: Script((30, IMMEDIATE), (70, IMMEDIATE)),
        "late": lambda: Late((10, IMMEDIATE), (50, IMMEDIATE), delay=case["delay"]),
    }
    validation: dict[str, Any] = {"everySteps": 20}
    training: dict[str, Any] = {"validation": validation}
    if "patience" in case:
        validation.update(everySteps=5, patience=case["patience"])
        training["optimizer"] = {"learningRate": 0.05}
    task = None
    if "poison" in case:
        example = case["poison"]

        def poison(losses: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            bad = bool((batch["number"] == example).any()) and len(losses) == 32
            return losses * math.nan if bad else losses

        task = Poisoned(digits(), poison)
    inbox = Inbox()
    observer = Incidents(case, folder, inbox)
    script = scripts[case["script"]]() if "script" in case else None
    trainer = Trainer(
        manifest(STEPS, training=training), folder, observer, None, task, script, commands=inbox
    )
    observer.trainer = trainer
    trainer.run()


def recorded(case: dict[str, Any], folder: Path) -> int:
    """Train one case in processes of its own until it is complete; returns how many were killed."""
    killed = 0
    while True:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.replay", json.dumps(case), str(folder)],
            check=False,
            capture_output=True,
            text=True,
        )
        if done.returncode == 0:
            return killed
        if done.returncode != -signal.SIGKILL:
            raise RuntimeError(done.stderr[-2000:])
        killed += 1


def replayed(folder: Path) -> Replayed:
    """Replay with sound data and sound hardware."""
    trainer, comparison = replay_run(RunFolder(folder))
    trainer.run()
    return comparison.outcome()


def main() -> int:
    """Record and replay every case, and print the line."""
    if len(sys.argv) > 1:
        train(json.loads(sys.argv[1]), Path(sys.argv[2]))
        return 0
    torch.set_num_threads(1)
    root = Path(tempfile.mkdtemp(prefix="esper-replay-"))
    found: dict[str, str] = {}
    folders: dict[str, Path] = {}
    kills = 0
    for number, (name, case) in enumerate(CASES.items()):
        folders[name] = root / f"run{number}"
        kills += recorded(case, folders[name])
    served: dict[str, dict[str, int]] = {}
    for number, (name, run) in enumerate(replay_served.CASES.items()):
        folders[name] = replay_served.recorded(run, root / f"served{number}")
        kills += len(run.kills)
        served[name] = replay_served.what_was_decided(read_journal(folders[name] / "journal.jsonl"))
    equal = rollbacks = resumptions = 0
    for name, folder in folders.items():
        events = [entry.event for entry in read_journal(folder / "journal.jsonl")]
        rollbacks += sum(isinstance(event, RolledBack) for event in events)
        resumptions += sum(isinstance(event, Resumed) for event in events)
        outcome = replayed(folder)
        equal += outcome.equal
        found[name] = "equal" if outcome.equal else f"{outcome.differences}; {outcome.first}"
        print(f"# {name}: {found[name]}", flush=True)
    obeyed = sum(counts["directivesOfTheService"] > 0 for counts in served.values())
    handovers = sum(counts["handovers"] for counts in served.values())
    trainer, comparison = replay_run(RunFolder(folders["isolated, pinned"]), root / "control")
    trainer._task = Poisoned(digits(), lambda losses, batch: losses * 1.0001)
    trainer.run()
    control = comparison.outcome()
    passed = equal == len(folders) and not control.equal and obeyed >= 10 and handovers > 0
    bar(
        "replay",
        command=COMMAND,
        figure={"runs": len(folders), "equal weights": equal, "a service decided": obeyed},
        bound=f"{len(folders)} of {len(folders)} replays end with the recorded weights and architecture; in "
        "at least 10 the service commanded something that counts",
        passed=passed,
        control={"losses scaled by 1.0001 are found to differ": not control.equal, "first": control.first},
        detail={
            "kills": kills,
            "rollbacks": rollbacks,
            "resumptions": resumptions,
            "handovers": handovers,
            "runs": found,
            "served": served,
        },
    )
    shutil.rmtree(root)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())

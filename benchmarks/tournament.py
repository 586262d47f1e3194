"""Bars: four candidates side by side change nothing in the host, cost less than four passes, and the choice.

The last is a question: does the candidate that gains most behind the host also end best once it is in it?
Each of the four is let into the same slot of the same host at the same step, in a run of its own; what the
tournament's choice ends with is held against the mean of the four (a random candidate). Run as ``python -m
benchmarks.tournament``; about five minutes on one core.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from scipy import stats
from torch import Tensor, nn

from benchmarks.exactness import difference, fits, growable, hooks, losses, make, train
from benchmarks.growth.stats import mean_interval
from benchmarks.line import bar
from esper_runtime.blueprint import canonical_id
from esper_runtime.contracts import (
    Blueprint,
    Decision,
    Directive,
    Finished,
    GraftingPlan,
    MorphogeneticRun,
    Operation,
    PlanKind,
    SeedStage,
    Source,
    SystemState,
    parse_run,
)
from esper_runtime.kasmina import Growable, Seed, learn_isolated, learn_side_by_side
from esper_runtime.nissa import read_journal
from esper_runtime.tamiyo import Lesson
from esper_runtime.tolaria import Task, Trainer, build_host, load_task
from esper_runtime.tolaria.macs import count_macs
from tests.kasmina.hosts import HOSTS

COMMAND = "python -m benchmarks.tournament"
CANDIDATES, SEEDS = 4, 10
STEPS, PLANTED, LEARNING, RAMP = 400, 40, 80, 8
SLOT = "layers.0.activation.output"
KINDS = ("bottleneck-bn", "conv-pair-bn", "conv-stack-bn-half", "separable-bn")
"""Four kinds of block of 352 to 424 parameters, for a host of 906."""


# Exactness


def enter(model: Growable, slot: str, blueprints: Sequence[Blueprint]) -> list[Seed]:
    """Begin a tournament with weights that are no longer the zero function."""
    for blueprint in blueprints:
        model.submit(
            Directive(
                operation=Operation.GERMINATE,
                slot=slot,
                blueprint=canonical_id(blueprint),
                plan=GraftingPlan(kind=PlanKind.TOURNAMENT),
                explanation="tournament",
            )
        )
    changes = model.boundary(0)
    assert not changes.refused, changes.refused
    with torch.random.fork_rng():
        torch.manual_seed(7)
        for parameter in (p for seed in changes.born for p in seed.body.parameters()):
            nn.init.normal_(parameter, std=0.1)
    return changes.born


def entrants(model: Growable, slot: str) -> list[Blueprint]:
    """Up to four blueprints, spread over those that fit."""
    found = fits(model, slot)
    return found[:: max(1, len(found) // CANDIDATES)][:CANDIDATES]


def criterion(output: Any) -> Tensor:
    """The test hosts' loss."""
    return losses(output).mean()


def check_host(name: str, steps: int = 20) -> float:
    """Candidates learn side by side at the first slot while the host trains: the host does not notice."""
    bare, args, kwargs = make(name)
    host, _, _ = make(name)
    model = growable(host, args, kwargs)
    slot = next(slot for slot in model.slots if fits(model, slot))
    seeds = enter(model, slot, entrants(model, slot))
    optimizer = torch.optim.AdamW([p for seed in seeds for p in seed.body.parameters()], lr=1e-2)

    def learn(_: int) -> None:
        gradients = [None if p.grad is None else p.grad.clone() for p in host.parameters()]
        buffers = [buffer.clone() for buffer in host.buffers()]
        state = torch.get_rng_state()
        learn_side_by_side(model, seeds, args, kwargs, criterion)
        for before, p in zip(gradients, host.parameters(), strict=True):
            assert (before is None and p.grad is None) or torch.equal(before, p.grad)  # type: ignore[arg-type]
        assert all(torch.equal(a, b) for a, b in zip(buffers, host.buffers(), strict=True)), "buffers changed"
        assert torch.equal(state, torch.get_rng_state()), "the random state changed"
        optimizer.step()

    expected = train(bare, args, kwargs, steps)
    expected_random = torch.get_rng_state()
    found = train(model, args, kwargs, steps, learn)
    assert torch.equal(expected_random, torch.get_rng_state()), "the random state differs"
    assert hooks(host) == hooks(bare), "a hook was left in the host"
    return max(difference(expected, found), difference(bare.state_dict(), host.state_dict()))


def check_alone(name: str) -> tuple[float, int, int]:
    """Each candidate's loss, gradients and buffers side by side against a pass of its own, at every slot.

    Returns (largest difference over the largest number of its tensor or 1, tournaments, of them in one pass).
    """
    host, args, kwargs = make(name)
    model = growable(host, args, kwargs)
    worst, held, together = 0.0, 0, 0
    for slot in [slot for slot in model.slots if len(fits(model, slot)) > 1]:
        seeds = enter(model, slot, entrants(model, slot))
        torch.manual_seed(3)
        buffers = [(buffer, buffer.clone()) for buffer in model.living.buffers()]
        alone = [_learned(model, [seed], args, kwargs)[0] for seed in seeds]
        for buffer, before in buffers:
            buffer.copy_(before)
        side = _learned(model, seeds, args, kwargs)
        for found, expected in zip(side, alone, strict=True):
            for a, b in zip(found, expected, strict=True):
                worst = max(worst, float((a - b).abs().max()) / max(1.0, float(b.abs().max())))
        held += 1
        together += not seeds[0].apart
        for seed in seeds:
            model.submit(Directive(operation=Operation.CANCEL, seed=seed.identity, explanation="done"))
        model.boundary(1)
    return worst, held, together


def _learned(model: Growable, seeds: Sequence[Seed], args: Any, kwargs: Any) -> list[list[Tensor]]:
    """Loss, gradients and buffers of each seed."""
    for parameter in model.living.parameters():
        parameter.grad = None
    found = learn_side_by_side(model, seeds, args, kwargs, criterion)
    state = [[loss] for loss in found]
    for values, seed in zip(state, seeds, strict=True):
        values += [torch.zeros(()) if p.grad is None else p.grad.clone() for p in seed.body.parameters()]
        values += [buffer.clone() for buffer in seed.body.buffers()]
    return state


def exactness() -> None:
    """Two lines: the host, and the candidates."""
    figures = {name: check_host(name) for name in HOSTS}
    bar(
        "tournament: host with 4 candidates side by side against the bare host",
        command=COMMAND,
        figure=max(figures.values()),
        bound="== 0",
        passed=max(figures.values()) == 0.0,
        detail={"hosts": len(figures)},
    )
    found = {name: check_alone(name) for name in HOSTS}
    worst = max(value[0] for value in found.values())
    bar(
        "tournament: losses, gradients and buffers side by side against each alone",
        command=COMMAND,
        figure=worst,
        bound="<= 1e-5",
        passed=worst <= 1e-5,
        detail={
            "tournaments": sum(value[1] for value in found.values()),
            "in_one_pass": sum(value[2] for value in found.values()),
        },
    )


# Cost


def timed(fn: Callable[[], Any]) -> float:
    """Seconds of one call."""
    begun = time.perf_counter()
    fn()
    return time.perf_counter() - begun


def cost(name: str, model: Growable, args: Any, loss: Any, slot: str, names: Sequence[str]) -> None:
    """One line: time and computation of one pass for four candidates over four passes, interleaved."""
    by_name = {b.name: b for b in model.blueprints.values()}
    seeds = enter(model, slot, [by_name[n] for n in names])

    def apart() -> None:
        for seed in seeds:
            learn_isolated(model, seed, args, {}, loss)

    def together() -> None:
        learn_side_by_side(model, seeds, args, {}, loss)

    apart()
    together()
    rounds = [(timed(apart), timed(together), timed(apart)) for _ in range(100)]
    figure = statistics.median(b / a for a, b, _ in rounds)
    macs = count_macs(together)[0] / count_macs(apart)[0]
    bar(
        f"tournament: time of 4 side by side over 4 passes, {name}",
        command=COMMAND,
        figure=round(figure, 3),
        bound="< 1",
        passed=figure < 1,
        control=round(statistics.median(c / a for a, _, c in rounds), 3),
        detail={
            "milliseconds_apart": round(1e3 * statistics.median(a for a, _, _ in rounds), 2),
            "macs_ratio": round(macs, 3),
            "in_one_pass": not seeds[0].apart,
        },
    )


def costs() -> None:
    """The first and the last slot of the mnist1d CNN, and a residual network and a transformer."""
    task = load_task(Source(builtin="mnist1d"), random_seed=0)
    batch = {name: values[:100] for name, values in task.train.items()}
    args, _ = task.inputs(batch)

    def loss(output: Any) -> Tensor:
        return task.losses(output, batch).mean()

    for slot in (SLOT, "layers.2.activation.output"):
        model = growable(build_host(manifest(0).spec.host, task, 0), args, {})
        cost(f"mnist1d CNN at {slot}", model, args, loss, slot, KINDS)
    for name in ("resnet", "transformer_causal"):
        host, args, kwargs = make(name)
        model = growable(host, args, kwargs)
        slot = next(slot for slot in model.slots if len(fits(model, slot)) >= CANDIDATES)
        cost(f"{name} at {slot}", model, args, criterion, slot, [b.name for b in entrants(model, slot)])


# The choice


def manifest(random_seed: int) -> MorphogeneticRun:
    """A short run of the mnist1d example."""
    return parse_run(
        {
            "apiVersion": "esper.dev/v1alpha1",
            "kind": "MorphogeneticRun",
            "metadata": {"name": "tournament"},
            "spec": {
                "host": {"builtin": "cnn1d", "args": {"channels": [8, 8, 8], "norm": "batch"}},
                "task": {"builtin": "mnist1d"},
                "training": {
                    "steps": STEPS,
                    "batchSize": 100,
                    "randomSeed": random_seed,
                    "optimizer": {"name": "AdamW", "learningRate": 0.01},
                    "schedule": {"name": "Cosine"},
                    "validation": {"everySteps": PLANTED},
                },
                "growth": {"controller": {"everySteps": RAMP}, "budget": {"parameters": "2x"}},
                "checkpoint": {"everySteps": STEPS},
            },
        },
        "benchmarks.tournament",
    )


class Forced:
    """Holds the tournament, notes the gains, and lets in the candidate that it was told to, for good."""

    name = "Forced"

    def __init__(self, winner: int) -> None:
        self.winner = winner
        self.gains: list[float] = []
        self._planted = False

    def decide(self, state: SystemState) -> Decision:
        """The script."""
        directives: list[Directive] = []
        if not self._planted and state.step >= PLANTED:
            self._planted = True
            directives = [self._plant(state, name) for name in KINDS]
        rivals = [seed for seed in state.seeds if seed.competes]
        if rivals and all(seed.ready for seed in rivals):
            self.gains = [seed.isolated_gain.mean for seed in rivals if seed.isolated_gain is not None]
            for index, seed in enumerate(rivals):
                operation = Operation.GRAFT if index == self.winner else Operation.CULL
                directives.append(self._tell(operation, seed.seed))
        for seed in state.seeds:
            if seed.stage is SeedStage.GRAFTING and seed.ready and seed.alpha == 1.0:
                directives.append(self._tell(Operation.EVALUATE, seed.seed))
            elif seed.stage is SeedStage.EVALUATING and seed.contribution is not None:
                directives.append(self._tell(Operation.FOSSILIZE, seed.seed))
        return Decision(directives=tuple(directives), explanation="the benchmark's script")

    def _plant(self, state: SystemState, name: str) -> Directive:
        found = next(c for c in state.candidates if c.slot == SLOT and c.name == name)
        plan = GraftingPlan(
            kind=PlanKind.TOURNAMENT, training_steps=LEARNING, ramp_steps=RAMP, grafting_steps=5 * RAMP
        )
        return Directive(
            operation=Operation.GERMINATE,
            slot=SLOT,
            blueprint=found.blueprint,
            plan=plan,
            explanation="the benchmark's script",
        )

    def _tell(self, operation: Operation, seed: str) -> Directive:
        return Directive(operation=operation, seed=seed, explanation="the benchmark's script")

    def state(self) -> dict[str, Any]:
        """Whether it has planted."""
        return {"planted": self._planted}

    def restore(self, data: dict[str, Any]) -> None:
        """Go on from there."""
        self._planted = data["planted"]

    def lesson(self, lesson: Lesson) -> None:
        """Nothing is learned from faults."""


def ended(random_seed: int, winner: int, task: Task) -> tuple[list[float], float, float]:
    """Gains of the four behind the host, and validation accuracy (%) and loss with one of them let in."""
    controller = Forced(winner)
    with tempfile.TemporaryDirectory() as folder:
        Trainer(manifest(random_seed), Path(folder), task=task, controller=controller).run()
        entries = read_journal(Path(folder) / "journal.jsonl")
    finished = next(e.event for e in reversed(entries) if isinstance(e.event, Finished))
    assert finished.validation_metric is not None
    assert finished.validation_loss is not None
    assert len(controller.gains) == CANDIDATES, "a candidate has failed"
    return controller.gains, 100 * finished.validation_metric, finished.validation_loss


def choice() -> None:
    """One line: the tournament's choice against the mean of its four candidates."""
    gains, accuracy, loss = [], [], []
    for random_seed in range(SEEDS):
        task = load_task(Source(builtin="mnist1d"), random_seed=random_seed)
        runs = [ended(random_seed, winner, task) for winner in range(CANDIDATES)]
        assert all(run[0] == runs[0][0] for run in runs), "the four runs differ before the choice"
        gains.append(runs[0][0])
        accuracy.append([run[1] for run in runs])
        loss.append([run[2] for run in runs])
    chosen = [row.index(max(row)) for row in gains]
    picked = [row[c] - statistics.fmean(row) for row, c in zip(accuracy, chosen, strict=True)]
    lower = [statistics.fmean(row) - row[c] for row, c in zip(loss, chosen, strict=True)]
    best = [max(row) - statistics.fmean(row) for row in accuracy]
    ranks = [float(stats.spearmanr(g, a).statistic) for g, a in zip(gains, accuracy, strict=True)]
    losses_ranks = [-float(stats.spearmanr(g, v).statistic) for g, v in zip(gains, loss, strict=True)]
    found, in_loss = mean_interval(picked), mean_interval(lower)
    assert found is not None
    assert in_loss is not None
    by_kind = {
        kind: {
            "gain": round(statistics.fmean(row[i] for row in gains), 4),
            "accuracy": round(statistics.fmean(row[i] for row in accuracy), 2),
            "chosen": chosen.count(i),
        }
        for i, kind in enumerate(KINDS)
    }
    bar(
        "tournament: validation accuracy of its choice over a random candidate, points",
        command=COMMAND,
        figure=round(found.mean, 2),
        bound="95 % interval above 0, or the finding that it is not",
        passed=None,
        detail={
            "interval": [round(found.low, 2), round(found.high, 2)],
            "interval_excludes_zero": found.above_zero,
            "lower_validation_loss": [round(v, 4) for v in (in_loss.mean, in_loss.low, in_loss.high)],
            "best_of_four_over_random": round(statistics.fmean(best), 2),
            "rank_correlation_of_gain_and_accuracy": round(statistics.fmean(ranks), 3),
            "rank_correlation_of_gain_and_loss": round(statistics.fmean(losses_ranks), 3),
            "by_kind": by_kind,
            "seeds": SEEDS,
            "steps": STEPS,
            "learned_behind_the_host": LEARNING,
        },
    )


def main() -> None:
    """All lines."""
    torch.set_num_threads(1)
    exactness()
    costs()
    choice()


if __name__ == "__main__":
    main()

"""The run report: one HTML file that needs nothing but itself, made from the journal alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from esper_runtime.contracts import (
    GENESIS,
    Decided,
    JournalEntry,
    ModuleSummary,
    SeedStage,
)
from esper_runtime.nissa import charts, structure, words
from esper_runtime.nissa.explain import OUTCOMES, cause, target, who_decided
from esper_runtime.nissa.history import History, SeedLife, read_history
from esper_runtime.nissa.kernels import kernels_of
from esper_runtime.nissa.scales import Axis
from esper_runtime.nissa.steering import in_words
from esper_runtime.nissa.summary import RunSummary, summary_of
from esper_runtime.nissa.tournaments import gain_of, tournaments

MAX_LIVES = 100
MAX_DECISIONS = 150
MAX_ROWS = 60
MAX_RULES = 40


@dataclass(frozen=True)
class Shortened:
    """The rows that are shown, and how many are left out."""

    rows: Sequence[Any]
    hidden: int


@dataclass(frozen=True)
class Arm:
    """A row of the comparison; ``at`` is the test metric's place in percent of the drawing's width."""

    name: str
    description: str
    parameters: int
    macs: int
    learning_rate: float | None
    validation_metric: float | None
    test_metric: float | None
    at: float | None
    ours: bool


@dataclass(frozen=True)
class Purpose:
    """A part of the compute ledger; ``what`` says in words what it was spent on."""

    name: str
    what: str
    macs: int
    share: float


def render_report(entries: Sequence[JournalEntry]) -> str:
    """Render a run's journal, finished or not, as one self-contained HTML page.

    Raises:
        JournalError: the entries do not begin with the start of a run.
    """
    history = read_history(entries)
    started, summary = history.started, summary_of(history)
    axis = charts.axis_of(history)
    marks = charts.mark_rows(history, axis)
    kernels = kernels_of(entries)
    living = [life for life in history.lives if not life.gone and not life.undone]
    after = history.finished.modules if history.finished else ()
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            summary=summary,
            history=history,
            words=words,
            metric=history.metric,
            outcomes=OUTCOMES,
            fates=_FATES,
            rules=sum(len(row.marks) for row in marks) <= MAX_RULES,
            axis=axis,
            panels=_panels(history, summary, axis),
            hits=charts.hits(history, axis),
            marks=marks,
            lives=_lives(history, axis),
            stages=_stages(history),
            kernels=kernels,
            kernels_used=_last(kernels.used, MAX_ROWS),
            kernels_refused=_last(kernels.refused, MAX_ROWS),
            tournaments=_last(tournaments(history), MAX_ROWS),
            gain_of=gain_of,
            before=structure.draw(started.modules, started.slots, living, show_seeds=False),
            after=structure.draw(
                after or started.modules,
                started.slots,
                [life for life in living if life.seed not in history.absorbed],
                started.modules,
            ),
            absorptions=_last(history.absorptions, MAX_ROWS),
            elsewhere=structure.elsewhere(started.modules, started.parameters),
            changed=bool(living) or _differ(started.modules, after),
            decisions=_decisions(history),
            target=target,
            cause=cause,
            operations=_OPERATIONS,
            refusals=_last(history.refusals, MAX_ROWS),
            commands=_last([(step, in_words(event)) for step, event in history.steered], MAX_ROWS),
            controllers=_last(who_decided(history), MAX_ROWS),
            arms=_arms(history, summary),
            ledger=_ledger(history),
            validations=_spread(history.validations, MAX_ROWS),
            checkpoints=_last(history.checkpoints, MAX_ROWS),
            rollbacks=_last(history.rollbacks, MAX_ROWS),
            slot_changes=_last(history.slot_changes, MAX_ROWS),
            manifest=yaml.safe_dump(started.manifest, sort_keys=False, allow_unicode=True),
            broken=broken_link(entries),
        )
    )


def broken_link(entries: Sequence[JournalEntry]) -> int | None:
    """Sequence of the first entry that does not follow the one before it or its own digest, or None."""
    previous = GENESIS
    for index, entry in enumerate(entries):
        if entry.sequence != index or entry.previous != previous or not entry.follows_its_digest():
            return entry.sequence
        previous = entry.digest
    return None


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("esper_runtime.nissa", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        count=words.count,
        macs=words.macs,
        number=words.number,
        duration=words.duration,
        plain=_plain,
        without_step=words.without_step,
        breakable=_breakable,
    )
    return environment


def _breakable(name: str) -> Markup:
    """A dotted name that may be broken behind its dots."""
    return Markup(".<wbr>").join(name.split("."))


def _plain(value: object) -> str:
    """A value of a directive's evidence."""
    if isinstance(value, float):
        return words.number(value)
    return words.count(value) if isinstance(value, int) else str(value)


_OPERATIONS = {
    "Germinate": "plant",
    "Graft": "graft",
    "Stabilize": "stabilize",
    "Evaluate": "judge",
    "FineTune": "fine-tune",
    "Fossilize": "keep",
    "Cull": "cull",
    "Cancel": "cancel",
    "Excise": "excise",
    "Unlock": "unlock",
}

_SPENT_ON = {
    "forward": "training, with the seeds that contribute",
    "backward": "training, with the seeds that contribute",
    "isolated": "seeds learning behind the host",
    "probe": "telemetry, and what candidates promise",
    "initialisation": "gradient statistics for a seed's first weights",
    "contribution": "the same examples with and without a seed",
    "diagnosis": "passes that look for the cause of a fault, or for one before a checkpoint",
    "validation": "",
    "test": "once, at the end",
}

_FATES = dict.fromkeys(SeedStage, "living") | {
    SeedStage.FOSSILIZED: "kept",
    SeedStage.CULLED: "culled",
    SeedStage.CANCELLED: "gone",
    SeedStage.EXCISED: "gone",
    SeedStage.ROLLED_BACK: "culled",
}


def _panels(history: History, summary: RunSummary, axis: Axis) -> list[charts.Panel]:
    host = summary.host_arm
    references = [("ungrown host", host.validation_metric)] if host and summary.kept else []
    return [
        charts.metric_panel(history, axis, references),
        charts.loss_panel(history, axis),
        charts.parameters_panel(history, axis),
    ]


def _lives(history: History, axis: Axis) -> Shortened:
    """Kept seeds first when there are too many to draw, then the latest."""
    kept = [life for life in history.lives if life.kept]
    others = [life for life in history.lives if not life.kept]
    room = max(0, MAX_LIVES - len(kept))
    shown: list[SeedLife] = kept[:MAX_LIVES] + (others[-room:] if room else [])
    shown.sort(key=lambda life: (life.born, life.end))
    return Shortened([charts.life_row(life, axis) for life in shown], len(history.lives) - len(shown))


def _stages(history: History) -> list[SeedStage]:
    """The stages that occur, in the order of a life."""
    seen = {stay.stage for life in history.lives for stay in life.stays if stay.end > stay.start}
    return [stage for stage in SeedStage if stage in seen]


def _differ(before: Sequence[ModuleSummary], after: Sequence[ModuleSummary]) -> bool:
    return bool(after) and list(before) != list(after)


def _decisions(history: History) -> Shortened:
    """All that commanded something as far as there is room, then the latest reasons for waiting."""
    commands = [pair for pair in history.decisions if pair[1].directives]
    waits = [pair for pair in history.decisions if not pair[1].directives]
    shown: list[tuple[int, Decided]] = commands[:MAX_DECISIONS]
    room = MAX_DECISIONS - len(shown)
    shown += waits[-room:] if room else []
    order = {id(event): place for place, (_, event) in enumerate(history.decisions)}
    shown.sort(key=lambda pair: order[id(pair[1])])
    return Shortened(shown, len(history.decisions) - len(shown))


def _last(rows: Sequence[Any], most: int) -> Shortened:
    return Shortened(rows[-most:], max(0, len(rows) - most))


def _spread(rows: Sequence[Any], most: int) -> Shortened:
    """Evenly chosen rows, the last one always among them."""
    every = -(-len(rows) // most) or 1
    shown = rows[::-1][::every][::-1]
    return Shortened(shown, len(rows) - len(shown))


def _arms(history: History, summary: RunSummary) -> list[Arm]:
    """This run and what it is compared with; empty without a comparison."""
    if not history.comparisons:
        return []
    rate = history.setting("training", "optimizer", "learningRate")
    ours = ("this run", "trained by this run", summary.parameters, summary.macs)
    rows = [(*ours, rate, summary.validation_metric, summary.test_metric, True)]
    rows += [
        (
            arm.arm,
            arm.description,
            arm.parameters,
            arm.macs,
            arm.learning_rate,
            arm.validation_metric,
            arm.test_metric,
            False,
        )
        for arm in history.comparisons
    ]
    measured = [row[6] for row in rows if row[6] is not None]
    low, high = min(measured), max(measured)
    room = (high - low) or 1.0
    places = [None if row[6] is None else round(8 + 84 * (row[6] - low) / room, 2) for row in rows]
    return [Arm(*row[:7], at=place, ours=row[7]) for row, place in zip(rows, places, strict=True)]


def _ledger(history: History) -> list[Purpose]:
    """MACs by purpose, largest first; empty while the run is not finished."""
    ledger = history.finished.ledger if history.finished else {}
    total = sum(ledger.values()) or 1
    ordered = sorted(ledger.items(), key=lambda item: -item[1])
    return [
        Purpose(name, _SPENT_ON.get(name, ""), macs, round(100 * macs / total, 3)) for name, macs in ordered
    ]

"""Why a run grew, or why it did not, in plain text: what ``esper explain`` prints."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence

from esper_runtime.contracts import Directive, JournalEntry, RolledBack, SeedStage
from esper_runtime.nissa.history import History, SeedLife, read_history
from esper_runtime.nissa.steering import in_words
from esper_runtime.nissa.summary import summary_of
from esper_runtime.nissa.tournaments import told, tournaments
from esper_runtime.nissa.words import clause, count, interval, listing, number, plural, without_step

MAX_SEEDS = 20
MAX_REASONS = 6
WIDTH = 100

OUTCOMES = {
    SeedStage.GERMINATED: "waiting for its turn",
    SeedStage.LOADING: "loading",
    SeedStage.TRAINING: "learning behind the host",
    SeedStage.GRAFTING: "in the host, learning",
    SeedStage.STABILIZING: "in the host, stabilizing",
    SeedStage.EVALUATING: "being judged",
    SeedStage.FINE_TUNING: "fine-tuning",
    SeedStage.FOSSILIZED: "kept",
    SeedStage.CULLED: "culled",
    SeedStage.CANCELLED: "cancelled",
    SeedStage.EXCISED: "kept, later excised",
    SeedStage.ROLLED_BACK: "rolled back",
}
"""A seed's stage as the outcome of its life so far."""

HOLDERS = {"Embedded": "the embedded controller", "Service": "the controller service"}
"""Who may decide, in words."""


def explain(entries: Sequence[JournalEntry]) -> str:
    """Tell why the run grew, or why it did not: each seed's life, what was refused, and why it waited.

    Raises:
        JournalError: the entries do not begin with the start of a run.
    """
    history = read_history(entries)
    parts = [
        [_wrapped(f"{history.started.run}: {summary_of(history).headline}", "", "")],
        _seeds(history),
        _tournaments(history),
        _waiting(history),
        _refused(history),
        _who_decided(history),
        _faults(history),
        _commands(history),
    ]
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def target(directive: Directive, names: Mapping[str, str]) -> str:
    """What a directive is about: ``bottleneck at layers.1.output``, ``s3``. ``names`` of blueprints by id."""
    if directive.seed is not None:
        return directive.seed
    blueprint = names.get(directive.blueprint or "", directive.blueprint)
    place = f"at {directive.slot}" if directive.slot is not None else ""
    return " ".join(part for part in (blueprint, place) if part)


def waiting_reasons(history: History) -> list[tuple[int, str]]:
    """Steps and reasons of the decisions to do nothing."""
    return [
        (step, without_step(event.explanation)) for step, event in history.decisions if not event.directives
    ]


def cause(event: RolledBack) -> str:
    """Who is to blame for a fault, and which batches are skipped from now on."""
    batches = ""
    if event.batch is not None:
        last = event.batch + max(1, event.batches) - 1
        batches = f"batch {event.batch}" if last == event.batch else f"batches {event.batch} to {last}"
    if event.blame == "seed":
        return f"seed {event.seed}"
    if event.blame == "data":
        return batches or "the data"
    return f"not known; {batches} skipped" if batches else "not known"


def _wrapped(text: str, first: str, rest: str) -> str:
    return textwrap.fill(
        text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _steps(pairs: Iterable[tuple[int, str]]) -> list[str]:
    return [_wrapped(f"step {count(step)}: {text}", "  ", "    ") for step, text in pairs]


def _seeds(history: History) -> list[str]:
    if not history.lives:
        return []
    kept = [life for life in history.lives if life.kept]
    shown = (kept + [life for life in history.lives if not life.kept])[:MAX_SEEDS]
    lines = ["Seeds"]
    for life in sorted(shown, key=lambda life: (life.born, life.end)):
        lines += _seed(life, history)
    if hidden := len(history.lives) - len(shown):
        lines.append(f"  and {plural(hidden, 'seed')} more: see the report")
    return lines


def _seed(life: SeedLife, history: History) -> list[str]:
    what = f"{life.seed}  {life.name} at {life.slot}, {plural(life.parameters, 'parameter')}"
    lines = [_wrapped(f"{what}: {OUTCOMES[life.stage]}", "  ", "      ")]
    told = [(life.born, f"planted. {without_step(life.why_planted)}")]
    if life.stage is SeedStage.FOSSILIZED or life.gone:
        told.append((life.end, f"{OUTCOMES[life.stage]}. {without_step(life.reason)}"))
        if life.stage is SeedStage.FOSSILIZED:
            told[-1] = (life.entered(SeedStage.FOSSILIZED) or life.end, told[-1][1])
    lines += [_wrapped(f"step {count(step)}: {text}", "      ", "        ") for step, text in told]
    if (absorbed := history.absorbed.get(life.seed)) is not None:
        wider = plural(absorbed.units, "unit")
        text = f"absorbed: {absorbed.producer} and {absorbed.consumer} have {wider} more between them"
        lines.append(_wrapped(text, "      ", "        "))
    for name, measured in (("behind the host", life.isolated_gain), ("in the host", life.contribution)):
        if measured is not None:
            amount = interval(measured, history.confidence)
            confidence = number(100 * history.confidence)
            text = f"measured {name}: lowers the validation loss by {amount}, {confidence} % interval"
            lines.append(_wrapped(text, "      ", "        "))
    return lines


def _tournaments(history: History) -> list[str]:
    held = [(t.start, told(t, history.confidence)) for t in tournaments(history)[-MAX_REASONS:]]
    return ["Tournaments", *_steps(held)] if held else []


def _waiting(history: History) -> list[str]:
    if history.growth_off:
        return ["Why it did not grow", "  growth.controller.kind is Off in the manifest: nobody was asked."]
    reasons = waiting_reasons(history)
    if not reasons:
        asked = bool(history.decisions)
        return [] if asked or history.lives else ["Why it did not grow", "  No decision was taken yet."]
    title = "Why nothing else was planted" if history.lives else "Why it did not grow"
    shown = reasons if len(reasons) <= MAX_REASONS else [reasons[0], *reasons[1 - MAX_REASONS :]]
    lines = [title, *_steps(shown)]
    if hidden := len(reasons) - len(shown):
        lines.append(f"  and {plural(hidden, 'reason')} more: see the report")
    return lines


def _refused(history: History) -> list[str]:
    refused = [
        (step, f"{event.directive.operation} {target(event.directive, history.names)}: {event.reason}")
        for step, event in history.refusals
    ]
    refused += [(step, event.refused) for step, event in history.absorptions if event.refused is not None]
    lines = ["Refused", *_steps(refused[-MAX_REASONS:])] if refused else []
    if hidden := len(refused) - MAX_REASONS:
        lines += [f"  and {plural(hidden, 'refusal')} before: see the report"] if hidden > 0 else []
    return lines


def who_decided(history: History) -> list[tuple[int, str]]:
    """Hand-overs between the controllers and answers of the service that were not obeyed, by step."""
    told = [
        (step, f"{HOLDERS[event.after]} decides from here on (epoch {event.epoch}): {event.reason}")
        for step, event in history.handovers
    ]
    for step, event in history.answers_refused:
        answer = "an answer" if event.controller is None else f"an answer by {event.controller}"
        if event.in_reply_to is not None:
            answer += f" to question {event.in_reply_to} of epoch {event.epoch}"
        if event.count > 1:
            answer += f" and {plural(event.count - 1, 'other')} like it"
        told.append((step, f"{answer} not obeyed: {event.reason}"))
    return sorted(told, key=lambda pair: pair[0])


def _who_decided(history: History) -> list[str]:
    if history.setting("growth", "controller", "placement") != "Service":
        return []
    told = who_decided(history)
    names = dict.fromkeys(event.controller for _, event in history.decisions)
    lines = ["Who decided", _wrapped(f"{listing(list(names)) or 'nobody yet'}", "  ", "    ")]
    lines += _steps(told[-MAX_REASONS:])
    if (hidden := len(told) - MAX_REASONS) > 0:
        lines.append(f"  and {plural(hidden, 'note')} before: see the report")
    return lines


def _commands(history: History) -> list[str]:
    told = [(step, in_words(event)) for step, event in history.steered]
    return ["Commands", *_steps(told)] if told else []


def _faults(history: History) -> list[str]:
    told = [
        (step, f"{clause(event.fault)}; cause: {cause(event)}; went back to step {count(event.to_step)}")
        for step, event in history.rollbacks[-MAX_REASONS:]
    ]
    return ["Faults", *_steps(told)] if told else []

"""What people commanded a run, in words, and what holds because of it."""

from collections.abc import Iterable
from dataclasses import dataclass

from esper_runtime.contracts import Steer, Steered

_WORDS = {
    Steer.STOP: "stopped the run",
    Steer.PAUSE_GROWTH: "paused growth: nothing new is planted",
    Steer.RESUME_GROWTH: "let growth go on",
    Steer.PIN: "pinned the structure: it stays as it is",
    Steer.VETO: "vetoed slot {slot}: its seeds go and it is locked",
    Steer.UNLOCK: "unlocked slot {slot}",
}


@dataclass(frozen=True)
class Held:
    """What holds because people commanded it."""

    paused: bool = False
    pinned: bool = False
    vetoed: tuple[str, ...] = ()


def held(commands: Iterable[Steered]) -> Held:
    """What holds after all ``commands``, in their order; refused ones change nothing."""
    paused = pinned = False
    vetoed: list[str] = []
    for event in commands:
        if event.refused is not None:
            continue
        match event.command:
            case Steer.PAUSE_GROWTH:
                paused = True
            case Steer.PIN:
                pinned = True
            case Steer.RESUME_GROWTH:
                paused = pinned = False
            case Steer.VETO if event.slot is not None and event.slot not in vetoed:
                vetoed.append(event.slot)
            case Steer.UNLOCK if event.slot in vetoed:
                vetoed.remove(event.slot)
    return Held(paused, pinned, tuple(vetoed))


def in_words(event: Steered) -> str:
    """A command as a sentence without its end: ``ada vetoed slot layers.1: ...``."""
    who = event.by or "a person"
    if event.refused is not None:
        wanted = f"{event.command}" + (f" {event.slot}" if event.slot else "")
        return f"{who} commanded {wanted}, without effect: {event.refused}"
    return f"{who} {_WORDS[event.command].format(slot=event.slot)}"

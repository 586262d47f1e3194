"""Tournaments as a journal tells them: who learned side by side in a slot, who won, and by how much."""

from dataclasses import dataclass

from esper_runtime.contracts import SeedStage
from esper_runtime.nissa.history import History, SeedLife
from esper_runtime.nissa.words import count, interval, listing, plural


@dataclass(frozen=True)
class Tournament:
    """Seeds that germinated in one slot at one boundary; ``winner`` is the one that was let into the host."""

    slot: str
    start: int
    candidates: tuple[SeedLife, ...]
    winner: SeedLife | None

    @property
    def decided(self) -> int | None:
        """Step at which the winner was let in, or at which the last candidate went; None while they learn."""
        if self.winner is not None:
            return self.winner.entered(SeedStage.GRAFTING)
        return max(life.end for life in self.candidates) if all(c.gone for c in self.candidates) else None


def tournaments(history: History) -> list[Tournament]:
    """All tournaments of the run in order: only they plant several seeds in one slot at once."""
    groups: dict[tuple[int, str], list[SeedLife]] = {}
    for life in history.lives:
        if not life.undone:
            groups.setdefault((life.born, life.slot), []).append(life)
    return [
        Tournament(
            slot,
            born,
            tuple(sorted(lives, key=_rank)),
            next((life for life in lives if life.entered(SeedStage.GRAFTING) is not None), None),
        )
        for (born, slot), lives in groups.items()
        if len(lives) > 1
    ]


def _rank(life: SeedLife) -> tuple[bool, bool, float]:
    gain = life.isolated_gain
    return life.entered(SeedStage.GRAFTING) is None, gain is None, 0.0 if gain is None else -gain.mean


def gain_of(life: SeedLife, confidence: float) -> str:
    """The gain behind the host with its interval, in words."""
    return "not measured" if life.isolated_gain is None else interval(life.isolated_gain, confidence)


def told(tournament: Tournament, confidence: float) -> str:
    """A tournament in a sentence or two."""
    begun = (
        f"{plural(len(tournament.candidates), 'candidate')} at {tournament.slot} learned side by side behind "
        f"the host"
    )
    ranked = [f"{c.seed} {c.name} {gain_of(c, confidence)}" for c in tournament.candidates]
    gains = f"gains: {listing(ranked)}"
    if tournament.decided is None:
        return f"{begun}, and are not decided yet; {gains}"
    if tournament.winner is None:
        return f"{begun} until step {count(tournament.decided)}; none was let in; {gains}"
    winner = f"{tournament.winner.seed} {tournament.winner.name}"
    return f"{begun} until step {count(tournament.decided)}; {winner} won and was let in; {gains}"

"""Proposals for one piece of work: mutations of good blueprints and random draws that nobody has yet."""

from collections.abc import Collection
from random import Random

from esper_runtime.blueprint import canonical_id
from esper_runtime.contracts import Blueprint, GenerateWork, GenerationError, Proposal
from esper_runtime.karn.draw import draw
from esper_runtime.karn.mutate import mutate

MUTATED = 0.7
"""Share of proposals that are mutations, where there are parents; the others keep what is new coming."""
NEW_TRIES = 20


def propose(work: GenerateWork, known: Collection[str]) -> list[Proposal]:
    """As many new blueprints as are wanted, or fewer where no more are found; the same for the same work and
    the same ``known``.

    Args:
        work: what is wanted.
        known: ids of blueprints that there are.

    Raises:
        GenerationError: nothing can be drawn for such slots, or nothing that is drawn is new.
    """
    random = Random(work.seed)
    taken, found = set(known), []
    for _ in range(work.number):
        seed = random.getrandbits(53)
        graph = _new(work, taken, Random(seed))
        if graph is not None:
            taken.add(canonical_id(graph))
            made = graph.provenance.model_copy(update={"seed": seed})
            found.append(Proposal(wish=work.wish, graph=graph.model_copy(update={"provenance": made})))
    if not found:
        raise GenerationError(f"{work.number * NEW_TRIES} blueprints were made, and all are known already")
    return found


def _new(work: GenerateWork, taken: Collection[str], random: Random) -> Blueprint | None:
    for _ in range(NEW_TRIES):
        graph = _one(work, random)
        if canonical_id(graph) not in taken:
            return graph
    return None


def _one(work: GenerateWork, random: Random) -> Blueprint:
    if work.parents and random.random() < MUTATED:
        try:
            return mutate(random.choice(work.parents), work.slots, work.budget, random)
        except GenerationError:
            pass  # this parent has no child that fits: a random draw has a chance of its own
    return draw(work.slots, work.budget, random)

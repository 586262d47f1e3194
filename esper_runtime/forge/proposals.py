"""What the generator proposes: read, its signature checked, and each graph put to the static check."""

from collections import Counter
from collections.abc import Mapping, Sequence

from nats.aio.client import Client

from esper_runtime.artifact import Trust, decode_signed
from esper_runtime.blueprint import canonical_id, screen
from esper_runtime.contracts import ArtifactError, BlueprintError, InnovationWish, Proposal
from esper_runtime.oona import Tail
from esper_runtime.planning import Proposed

STREAM = "PROPOSALS"


class Proposals:
    """The proposals that the stream still holds, kept up to date by `refresh`.

    Args:
        client: a connection of the planner's.
        trust: whose signature counts.
    """

    def __init__(self, client: Client, trust: Trust) -> None:
        self.ignored: Counter[str] = Counter()
        """Messages that are none, by reason."""
        self._tail = Tail(client.jetstream(), STREAM)
        self._trust = trust
        self._found: list[Proposal] = []
        self._checked: dict[int, tuple[InnovationWish | None, Proposed]] = {}

    async def refresh(self) -> None:
        """Read what is new.

        Raises:
            BusError: the bus does not answer.
            ArtifactError: the list of trusted keys may not be used.
        """
        found = await self._tail.read()
        if self._tail.began_anew:
            self._found.clear()
            self._checked.clear()
            self.ignored.clear()
        for kept in found:
            try:
                signed = decode_signed(kept.data)
            except ArtifactError:
                self.ignored["malformed"] += 1
                continue
            try:
                self._found.append(self._trust.verify_proposal(signed))
            except ArtifactError:
                self.ignored["forged"] += 1

    def judged(self, wishes: Mapping[str, InnovationWish]) -> Sequence[Proposed]:
        """All proposals in their order, each checked for the wish that it answers.

        Args:
            wishes: of trainings, by id.
        """
        found = []
        for number, proposal in enumerate(self._found):
            wish = wishes.get(proposal.wish)
            before = self._checked.get(number)
            if before is None or before[0] != wish:
                before = self._checked[number] = wish, _judged(proposal, wish)
            found.append(before[1])
        return found


def _judged(proposal: Proposal, wish: InnovationWish | None) -> Proposed:
    """As a person's blueprint is checked, for the slots of the wish; one that nobody waits for is not."""
    try:
        identity = canonical_id(proposal.graph)
    except BlueprintError as error:
        return Proposed("", proposal, error.rule)
    if wish is None:
        return Proposed(identity, proposal)
    refused: BlueprintError | None = None
    for slots in wish.slots:
        refused = screen(proposal.graph, slots, wish.budget)
        if refused is None:
            break
    return Proposed(identity, proposal, None if refused is None else refused.rule)

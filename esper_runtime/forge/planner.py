"""One planner over one connection: it looks, decides, and carries out what it decided."""

import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Mapping

import nats.errors
from nats.aio.client import Client
from nats.aio.subscription import Subscription

from esper_runtime.artifact import Trust
from esper_runtime.blueprint import canonical_id, catalogue
from esper_runtime.contracts import LIBRARY_SUBJECT, BusError, EsperError, Origin, Ruling, Signed
from esper_runtime.forge.act import Actor
from esper_runtime.forge.news import News
from esper_runtime.forge.observe import Observer
from esper_runtime.planning import (
    ForgePlan,
    ForgePolicy,
    ForgeState,
    InnovationPlan,
    plan_forge,
    plan_innovation,
)
from esper_runtime.urza import Library

LOOK_SECONDS = 1.0
"""At least so often everything is looked at, whether or not there was news."""

_log = logging.getLogger(__name__)


class Planner:
    """Plans for a library. Where the bus was away, or has lost its storage, make another one.

    Args:
        client: a connection of the planner's.
        trust: whose words count.
        sign: signs the planner's rulings.
        news: is rung when something happens in the library; default: nobody waits for it.
        replicas: of streams and stores that have to be made.
    """

    def __init__(
        self,
        client: Client,
        trust: Trust,
        sign: Callable[[Ruling], Signed],
        news: News | None = None,
        *,
        replicas: int = 1,
    ) -> None:
        self.client = client
        self.library = Library(client, trust, keeper=True, replicas=replicas)
        self.observer = Observer(client, self.library, trust)
        self.actor = Actor(client, self.library, sign, self.observer.notes)
        self.state = ForgeState(now=0.0)
        """What was seen last."""
        self.refused: Mapping[str, int] = {}
        """Proposals of the generator that were not entered, by reason, as far as they are kept."""
        self._news = news
        self._heard: list[Subscription] = []

    async def begin(self) -> None:
        """Read the library, make what it lacks of its stores, and hear of news from now on.

        Raises:
            BusError: the bus does not answer.
            ArtifactError: the list of trusted keys may not be used.
        """
        await self.library.refresh()
        if self._news is not None:
            try:
                for subject in (LIBRARY_SUBJECT, "$KV.wishes.>"):
                    self._heard.append(await self.client.subscribe(subject, cb=self._news.heard))
            except (OSError, nats.errors.Error) as error:
                raise BusError(f"the library cannot be heard: {error}") from error

    async def end(self) -> None:
        """Hear nothing any more; the connection stays as it is."""
        while self._heard:
            subscription = self._heard.pop()
            with contextlib.suppress(nats.errors.Error, OSError):  # it went with the connection
                await subscription.unsubscribe()

    async def enter_catalogue(self) -> None:
        """Enter the blueprints that come with Esper, where they lack.

        Raises:
            BusError: the bus does not answer.
        """
        there = await self.library.blueprints()
        for blueprint in catalogue().values():
            if canonical_id(blueprint) not in there:
                await self.library.enter(blueprint, Origin.CATALOGUE.value)

    async def look(self) -> ForgeState:
        """See how things stand, and do nothing.

        Raises:
            BusError: the bus does not answer.
        """
        self.state = await self.observer.look()
        return self.state

    async def turn(self, policy: ForgePolicy | None = None) -> ForgePlan:
        """Look, decide, act.

        Returns:
            What was decided; what could not be carried out, for another reason than the bus, is in the log
            and is decided anew at the next turn.

        Raises:
            BusError: the bus does not answer.
        """
        state = await self.look()
        plan = plan_forge(state, policy)
        innovation = await self.observer.innovation(state)
        more = plan_innovation(innovation) if innovation is not None else InnovationPlan()
        self.refused = Counter(more.refused) + self.observer.proposals.ignored
        for action in (*plan.actions, *more.actions):
            try:
                await self.actor.carry_out(action)
            except BusError:
                raise
            except EsperError as error:
                _log.error("%s: %s", type(action).__name__, error)
        return plan

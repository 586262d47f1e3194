"""What reaches a run from outside while it trains, handed to all of its ranks at the same boundary."""

from esper_runtime.contracts import SteeringCommand
from esper_runtime.tolaria.group import Group
from esper_runtime.tolaria.steering import Steering
from esper_runtime.tolaria.supply import Supply
from esper_runtime.urza import Offer

Items = tuple[list[SteeringCommand], list[Offer]]


class News:
    """A person's commands and kernels that come or go. Of several ranks, only rank 0 hears of them.

    Args:
        group: the ranks that train together.
        steering: takes the commands.
        supply: takes the kernels.
    """

    def __init__(self, group: Group, steering: Steering, supply: Supply) -> None:
        self._group, self._steering, self._supply = group, steering, supply
        self.told = False
        """Set where the last gradients brought word of news to all ranks."""

    @property
    def waiting(self) -> bool:
        """True when something has arrived on this rank that was not taken yet."""
        return self._steering.waiting or self._supply.waiting

    @property
    def idle(self) -> bool:
        """True when nothing has arrived and nothing is due, on the only rank there is."""
        return self._group.size == 1 and self._steering.idle and self._supply.idle

    def take(self, late: bool) -> Items:
        """What has arrived; the same on all ranks.

        Args:
            late: the boundary is over, because the run stops: kernels are left for the next start.
        """
        if self._group.size == 1:
            return self._steering.arrived(), [] if late else self._supply.arrived()
        if not self.told:
            return [], []
        self.told = False
        mine: list[list[dict[str, object]]] | None = None
        if self._group.leads:
            commands, offers = self._steering.arrived(), [] if late else self._supply.arrived()
            mine = [[item.model_dump(mode="json") for item in items] for items in (commands, offers)]
        given, offered = self._group.share(mine)
        return (
            [SteeringCommand.model_validate(command) for command in given],
            [Offer.model_validate(offer) for offer in offered],
        )

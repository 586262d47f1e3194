"""The lease of a process on this machine: one that was killed here is seen to be over at once."""

import socket

from nats.aio.client import Client

from esper_runtime.forge import Holder, Lease
from esper_runtime.local.parent import Parent


def lease_of_process(client: Client) -> Lease:
    """The right to plan, for this process.

    Args:
        client: a connection of the planner's.
    """
    here = socket.gethostname()

    def is_over(holder: Holder) -> bool:
        process = Parent.named(holder.process)
        return holder.host == here and (process is None or not process.alive)

    return Lease(client, here, Parent.me().text, is_over)

"""What keeps the ranks of a group the same: averaged gradients, equal newborns, equal weights."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

from esper_runtime.contracts import RunFailedError
from esper_runtime.kasmina import Growable
from esper_runtime.tolaria.checkpoint import from_bytes, to_bytes
from esper_runtime.tolaria.environment import random_state
from esper_runtime.tolaria.group import Group
from esper_runtime.tolaria.optimizer import GroupedOptimizer
from esper_runtime.tolaria.randomness import derived_seed

_INTEGER = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_WEIGHTS = 8191


def average_gradients(
    group: Group, parameters: Sequence[Parameter], buffers: Sequence[Tensor], numbers: Sequence[Tensor]
) -> list[float]:
    """Make gradients the mean over all ranks, and buffers those of rank 0, in one exchange.

    A gradient that only some ranks have counts as 0 on the others; one that no rank has stays None.

    Args:
        group: the ranks.
        parameters: all whose gradients count, the same on all ranks.
        buffers: floating buffers that a forward pass may change.
        numbers: scalars that travel with them.

    Returns:
        The sums of ``numbers`` over all ranks.
    """
    dtype = torch.float64 if any(p.dtype == torch.float64 for p in parameters) else torch.float32
    device = numbers[0].device
    present = torch.tensor([p.grad is not None for p in parameters], dtype=dtype, device=device)
    pieces = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten().to(dtype) for p in parameters]
    pieces += [(b if group.leads else torch.zeros_like(b)).flatten().to(dtype) for b in buffers]
    pieces += [present, torch.stack([number.detach().to(dtype) for number in numbers])]
    sizes = [piece.numel() for piece in pieces]
    flat = torch.cat(pieces, out=_room(sum(sizes), dtype, device))
    group.add(flat)
    tail: list[float] = flat[-(sizes[-1] + sizes[-2]) :].tolist()
    found, sums = tail[: len(parameters)], tail[len(parameters) :]
    count = len(parameters)
    parts = torch.split(flat, sizes)
    if count:
        flat[: sum(sizes[:count])].div_(group.size)
    with torch.no_grad():
        for parameter, part, there in zip(parameters, parts, found, strict=False):
            if there and parameter.grad is None:
                parameter.grad = torch.empty_like(parameter)
            if parameter.grad is not None:
                parameter.grad.copy_(part.view_as(parameter))
        for buffer, part in zip(buffers, parts[count:], strict=False):
            buffer.copy_(part.view_as(buffer))
    return sums


_rooms: dict[tuple[torch.dtype, torch.device], Tensor] = {}


def _room(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory for an exchange, used again and again: to get fresh pages costs more than to send them."""
    known = _rooms.get((dtype, device))
    if known is None or known.numel() < size:
        known = _rooms[dtype, device] = torch.empty(size, dtype=dtype, device=device)
    return known[:size]


def floating_buffers(model: Growable) -> list[Tensor]:
    """Buffers of host and seeds that hold statistics."""
    return [buffer for buffer in model.buffers() if buffer.is_floating_point()]


def check_equal(group: Group, model: Growable, optimizer: GroupedOptimizer, step: int) -> None:
    """Compare a checksum of each weight and each moment over all ranks.

    Raises:
        RunFailedError: a tensor is not the same on all ranks; the text names it.
    """
    if group.size == 1:
        return
    tensors = dict(model.named_parameters()) | dict(model.named_buffers()) | optimizer.state()[0]
    names = sorted(tensors)
    listing = sum((i + 1) * ord(c) for i, c in enumerate("\n".join(names)))
    if group.differing(torch.tensor([len(names), listing])):
        raise RunFailedError(f"step {step}: the ranks' models do not have the same tensors any more")
    different = group.differing(torch.stack([_checksum(tensors[name]) for name in names]))
    if different:
        raise RunFailedError(
            f"step {step}: {names[different[0]]} is not the same on all {group.size} ranks"
            + (f", nor are {len(different) - 1} other tensors" if len(different) > 1 else "")
            + "; all ranks must have the same hardware and versions, and a host's forward pass must not "
            "change its own parameters"
        )


def _checksum(tensor: Tensor) -> Tensor:
    """A number that depends on every bit and on most exchanges of places."""
    values = tensor.detach().contiguous().flatten()
    if values.dtype is torch.bool or values.element_size() not in _INTEGER:
        bits = values.to(torch.int64)
    else:
        bits = values.view(_INTEGER[values.element_size()]).to(torch.int64)
    weights = torch.arange(bits.numel(), device=bits.device).remainder_(_WEIGHTS).add_(1)
    return (bits * weights).sum().remainder(2**62).cpu()


def all_random_states(group: Group, own: dict[str, Tensor]) -> dict[str, Tensor]:
    """The states of all ranks' random generators; those of rank n > 0 are called ``rank<n>/NAME``."""
    if group.size == 1:
        return own
    found = dict(own)
    for rank, blob in enumerate(group.gather_bytes(to_bytes(own))):
        if rank:
            found |= {f"rank{rank}/{name}": tensor for name, tensor in from_bytes(blob).items()}
    return found


def own_random_state(
    group: Group, states: dict[str, Tensor], random_seed: int, step: int
) -> dict[str, Tensor]:
    """What of `all_random_states` is this rank's; a rank that was not there begins with a seed of its own."""
    first = {name: tensor for name, tensor in states.items() if "/" not in name}
    if group.leads:
        return first
    prefix = f"rank{group.rank}/"
    own = {name.removeprefix(prefix): t for name, t in states.items() if name.startswith(prefix)}
    if own:
        return own
    torch.manual_seed(derived_seed("rank", random_seed, group.rank, step))
    mine = {name: t for name, t in random_state().items() if name == "torch" or name.startswith("cuda.")}
    return {**first, **mine}

"""The processes that train a run together: who they are, and what they tell each other.

All ranks run the same loop over the same journalled events; rank 0 alone keeps files and decides. `Alone` is
the group of one process, in which every exchange gives back what it got.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from esper_runtime.contracts import InputError, PeerLostError, Workers

SHORT_MESSAGE = 2048
"""Bytes of a message that is sent in one exchange, its length included; a longer one takes two."""
_LENGTH = 8


class Group(Protocol):
    """What the ranks of one run tell each other. Every rank must make the same calls in the same order."""

    rank: int
    size: int

    @property
    def leads(self) -> bool:
        """True on rank 0, which keeps journal, checkpoints and model, and asks the controller."""
        ...

    def share(self, value: Any) -> Any:
        """Rank 0's ``value`` (JSON) on all ranks; what the others give is not looked at."""
        ...

    def share_bytes(self, blob: bytes) -> bytes:
        """Rank 0's bytes on all ranks."""
        ...

    def gather_bytes(self, blob: bytes) -> list[bytes]:
        """The bytes of all ranks, on all ranks, in their order."""
        ...

    def add(self, tensor: Tensor) -> None:
        """Replace ``tensor`` by its sum over all ranks."""
        ...

    def follow(self, tensors: Iterable[Tensor]) -> None:
        """Copy rank 0's values into the tensors of all ranks."""
        ...

    def mean(self, number: float) -> float:
        """The mean over all ranks."""
        ...

    def any(self, flag: bool) -> bool:
        """Whether one rank at least gave True."""
        ...

    def differing(self, numbers: Tensor) -> list[int]:
        """Positions at which the ranks' ``numbers`` (int64 [n], the same n) are not all equal."""
        ...

    def close(self) -> None:
        """Leave the group, at the end."""
        ...


class Alone:
    """One process trains the run."""

    rank = 0
    size = 1
    leads = True

    def share(self, value: Any) -> Any:
        """The value itself."""
        return value

    def share_bytes(self, blob: bytes) -> bytes:
        """The bytes themselves."""
        return blob

    def gather_bytes(self, blob: bytes) -> list[bytes]:
        """The bytes, alone."""
        return [blob]

    def add(self, tensor: Tensor) -> None:
        """Leave it as it is."""

    def follow(self, tensors: Iterable[Tensor]) -> None:
        """Leave them as they are."""

    def mean(self, number: float) -> float:
        """The number itself."""
        return number

    def any(self, flag: bool) -> bool:
        """The flag itself."""
        return flag

    def differing(self, numbers: Tensor) -> list[int]:
        """None."""
        return []

    def close(self) -> None:
        """Do nothing."""


class Ranks:
    """Ranks connected by torch.distributed: gloo for the CPU, NCCL for CUDA.

    Args:
        rank: of this process, from 0.
        size: number of ranks.
        device: where the model is; on CUDA, NCCL is used.
        timeout_seconds: after so long without an answer of the others they count as dead.

    Raises:
        PeerLostError: the others did not come within the timeout.
    """

    def __init__(self, rank: int, size: int, device: torch.device, timeout_seconds: float) -> None:
        self.rank, self.size = rank, size
        self._device = device
        backend = "nccl" if device.type == "cuda" else "gloo"
        if backend == "nccl":  # a lost peer is an error of the call that waits, not the end of the process
            os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")
        elif os.environ["MASTER_ADDR"] in ("127.0.0.1", "localhost"):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        with self._talking():
            dist.init_process_group(
                backend, rank=rank, world_size=size, timeout=timedelta(seconds=timeout_seconds)
            )

    @property
    def leads(self) -> bool:
        """True on rank 0."""
        return self.rank == 0

    @contextmanager
    def _talking(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # torch's errors of a lost connection, a timeout and a lost store
            first = str(error).split("\n", 1)[0][:200]
            raise PeerLostError(
                f"rank {self.rank} of {self.size} has lost the others ({first}); a new group goes on from "
                f"the last checkpoint"
            ) from error

    def share(self, value: Any) -> Any:
        """Rank 0's value (JSON; NaN and infinity pass)."""
        return json.loads(self.share_bytes(json.dumps(value).encode() if self.leads else b""))

    def share_bytes(self, blob: bytes) -> bytes:
        """Rank 0's bytes."""
        room = SHORT_MESSAGE - _LENGTH
        first = bytearray(SHORT_MESSAGE)
        if self.leads:
            first[:_LENGTH] = len(blob).to_bytes(_LENGTH, "big")
            first[_LENGTH : _LENGTH + min(room, len(blob))] = blob[:room]
        got = self._broadcast(first)
        length = int.from_bytes(got[:_LENGTH], "big")
        if length <= room:
            return got[_LENGTH : _LENGTH + length]
        return got[_LENGTH:] + self._broadcast(bytearray(blob[room:] if self.leads else length - room))

    def _broadcast(self, data: bytearray) -> bytes:
        tensor = torch.frombuffer(data, dtype=torch.uint8).to(self._device)
        with self._talking():
            dist.broadcast(tensor, 0)
        return tensor.cpu().numpy().tobytes()

    def gather_bytes(self, blob: bytes) -> list[bytes]:
        """The bytes of all ranks; they may differ in length."""
        lengths = torch.zeros(self.size, dtype=torch.int64, device=self._device)
        lengths[self.rank] = len(blob)
        self.add(lengths)
        most = max(1, int(lengths.max()))
        mine = torch.frombuffer(bytearray(blob.ljust(most, b"\0")), dtype=torch.uint8).to(self._device)
        all_of_them = [torch.empty_like(mine) for _ in range(self.size)]
        with self._talking():
            dist.all_gather(all_of_them, mine)
        pairs = zip(all_of_them, lengths.tolist(), strict=True)
        return [tensor[:length].cpu().numpy().tobytes() for tensor, length in pairs]

    def add(self, tensor: Tensor) -> None:
        """Sum over all ranks, the same bits on each."""
        with self._talking():
            dist.all_reduce(tensor)

    def follow(self, tensors: Iterable[Tensor]) -> None:
        """Rank 0's values."""
        with torch.no_grad(), self._talking():
            for tensor in tensors:
                whole = tensor.detach().contiguous()
                dist.broadcast(whole, 0)
                tensor.copy_(whole)

    def mean(self, number: float) -> float:
        """The mean over all ranks, in double precision."""
        total = torch.tensor(number, dtype=torch.float64, device=self._device)
        self.add(total)
        return total.item() / self.size

    def any(self, flag: bool) -> bool:
        """Whether one rank at least gave True."""
        return self.mean(float(flag)) > 0

    def differing(self, numbers: Tensor) -> list[int]:
        """Positions at which the ranks are not all equal."""
        both = torch.cat((numbers, -numbers)).to(self._device)
        with self._talking():
            dist.all_reduce(both, op=dist.ReduceOp.MAX)
        highest, lowest = both.chunk(2)
        return torch.nonzero(highest != -lowest).flatten().tolist()

    def close(self) -> None:
        """Leave the group."""
        if dist.is_initialized():
            dist.destroy_process_group()


def join(workers: Workers, device: torch.device, environment: Mapping[str, str] | None = None) -> Group:
    """The group that the environment names, as torchrun and `esper run` set it.

    RANK and WORLD_SIZE say which process this is, MASTER_ADDR and MASTER_PORT where rank 0 waits for the
    others, LOCAL_RANK which CUDA device it uses. Without them a process is alone.

    Args:
        workers: how many ranks the manifest wants.
        device: where the model is.
        environment: instead of the process's own.

    Raises:
        InputError: the variables are incomplete, or do not name as many ranks as the manifest wants.
        PeerLostError: the others did not come within the timeout.
    """
    given = os.environ if environment is None else environment
    wanted = workers.ranks
    rank, size = (_number(given, name, default) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))
    if size != wanted:
        raise InputError(
            f"spec.training.workers wants {workers.count} x {workers.processes_per_worker} = {wanted} ranks, "
            f"but WORLD_SIZE is {size}; start it with `esper run FILE`, or with `torchrun --nproc-per-node "
            f"{wanted} -m esper_runtime.cli run FILE`, or change the manifest"
        )
    if not 0 <= rank < size:
        raise InputError(f"RANK is {rank}; with WORLD_SIZE {size} it is 0 to {size - 1}")
    if size == 1:
        return Alone()
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not given.get(name)]
    if missing:
        raise InputError(f"RANK and WORLD_SIZE are set, but {missing[0]} is not: where rank 0 listens")
    if device.type == "cuda":
        torch.cuda.set_device(_number(given, "LOCAL_RANK", rank) % torch.cuda.device_count())
    return Ranks(rank, size, device, workers.timeout_seconds)


def _number(given: Mapping[str, str], name: str, default: int) -> int:
    text = given.get(name, str(default))
    try:
        return int(text)
    except ValueError:
        raise InputError(f"{name} is {text!r}; a whole number is expected") from None

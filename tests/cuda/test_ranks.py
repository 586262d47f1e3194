"""NCCL: every exchange of a group, by a group of one; two GPUs are wanted in tests/tolaria."""

import socket
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from esper_runtime.tolaria.agreement import average_gradients
from esper_runtime.tolaria.group import SHORT_MESSAGE, Ranks
from tests.cuda.runs import DEVICE


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ranks]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    torch.cuda.set_device(0)
    ranks = Ranks(0, 1, DEVICE, 60.0)
    yield ranks
    ranks.close()


def test_every_exchange_gives_back_what_one_rank_gave(group: Ranks) -> None:
    assert torch.distributed.get_backend() == "nccl"
    assert group.share({"a": [1.5, float("inf")], "b": None}) == {"a": [1.5, float("inf")], "b": None}
    for length in (0, 1, SHORT_MESSAGE, 100_000):
        blob = bytes(index % 251 for index in range(length))
        assert group.share_bytes(blob) == blob
        assert group.gather_bytes(blob) == [blob]
    assert group.mean(0.1) == 0.1
    assert group.any(True)
    assert not group.any(False)
    assert group.differing(torch.tensor([3, -7, 2**61])) == []
    tensor = torch.arange(5.0, device=DEVICE)
    group.follow([tensor, torch.ones(2, 3, device=DEVICE).t()])
    assert tensor.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_gradients_and_statistics_are_averaged_on_the_gpu(group: Ranks) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 2)).to(DEVICE)
    net(torch.randn(8, 4, device=DEVICE)).sum().backward()
    parameters = list(net.parameters())
    parameters[0].grad = None
    before = [None if p.grad is None else p.grad.clone() for p in parameters]
    buffers = [b for b in net.buffers() if b.is_floating_point()]
    kept = [b.clone() for b in buffers]
    numbers = [torch.tensor(2.5, device=DEVICE), torch.tensor(0.0, device=DEVICE)]
    assert average_gradients(group, parameters, buffers, numbers) == [2.5, 0.0]
    assert parameters[0].grad is None
    for parameter, gradient in zip(parameters[1:], before[1:], strict=True):
        assert gradient is not None
        assert torch.equal(parameter.grad, gradient)
    assert all(torch.equal(now, then) for now, then in zip(buffers, kept, strict=True))

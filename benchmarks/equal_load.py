"""A load that is not Esper's, and of the forge's kind: ``python -m benchmarks.equal_load``.

As a forge does, it forks a process for each piece of work, which builds layers, runs them forward and
backward and sends its outputs home, where they are compared with others; beside that a C++ compiler works on
PyTorch's headers. It goes on until SIGTERM. Whoever starts it says where and how nice it is.
"""

import os
import random
import signal
import subprocess
import tempfile
from pathlib import Path
from types import FrameType

import numpy as np
import torch
from torch import nn
from torch.utils import cpp_extension

ROUNDS = 12
SOURCE = "#include <ATen/ATen.h>\nat::Tensor f(at::Tensor x) { return x.relu().sum(); }\n"


def piece(width: int, hidden: int) -> bytes:
    """Outputs and gradients of a small network, in two precisions."""
    torch.manual_seed(0)
    told = []
    for dtype in (torch.float32, torch.float64):
        net = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width)).to(dtype)
        for _ in range(ROUNDS):
            x = torch.randn(64, width, dtype=dtype, requires_grad=True)
            net(x).square().mean().backward()
            told += [x.grad, *(parameter.grad for parameter in net.parameters())]
            net.zero_grad()
    return b"".join(tensor.numpy().tobytes() for tensor in told if tensor is not None)


def work(folder: Path, width: int, hidden: int) -> None:
    """Do a piece in a process of its own, and compare what comes back."""
    path = folder / "outputs"
    child = os.fork()
    if not child:
        try:
            path.write_bytes(piece(width, hidden))
        finally:  # also where the other is told to end and takes the folder away
            os._exit(0)
    expected = np.frombuffer(piece(width, hidden), np.uint8)
    os.waitpid(child, 0)
    assert np.array_equal(expected, np.frombuffer(path.read_bytes(), np.uint8))


def compiler(folder: Path) -> "subprocess.Popen[bytes]":
    """A compiler that begins again and again."""
    source = folder / "source.cpp"
    source.write_text(SOURCE)
    include = " ".join(f"-I{path}" for path in cpp_extension.include_paths())
    loop = f"while :; do g++ -O2 -w -std=c++20 {include} -c {source} -o {folder}/object.o; done"
    return subprocess.Popen(["sh", "-c", loop], start_new_session=True)


def main() -> None:
    """Work until told to end."""
    torch.set_num_threads(1)
    chosen = random.Random(0)

    told = False

    def end(*_: int | FrameType | None) -> None:
        nonlocal told
        told = True

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        beside = compiler(Path(folder))
        signal.signal(signal.SIGTERM, end)
        print("ready", flush=True)
        try:
            while not told:
                work(Path(folder), chosen.choice((16, 64, 256, 512)), chosen.choice((16, 64, 256, 512)))
        finally:
            os.killpg(beside.pid, signal.SIGKILL)
            beside.wait()


if __name__ == "__main__":
    main()

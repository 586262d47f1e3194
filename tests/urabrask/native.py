"""Shared objects that PyTorch's runner loads as compiled kernels, made by gcc from ``native.c``."""

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from esper_runtime.contracts import Blueprint, InterfaceKind, Node
from esper_runtime.kasmina.kernels import Call

WIDTH = 16
SOURCE = Path(__file__).with_name("native.c")
SHAPES = {"tail.weight": (WIDTH, WIDTH), "tail.bias": (WIDTH,)}
TENSORS = tuple(SHAPES)


def graph() -> Blueprint:
    """What ``native.c`` computes, as a blueprint."""
    return Blueprint(
        name="relu-linear",
        interface=InterfaceKind.FEATURES,
        nodes=(
            Node(id="activation", op="relu", inputs=("input",)),
            Node(id="tail", op="linear", inputs=("activation",), attributes={"width": "Cout"}),
        ),
        output="tail",
    )


def parts(
    folder: Path,
    *,
    forward: dict[str, str] | None = None,
    backward: dict[str, str] | None = None,
    learned: tuple[str, ...] = TENSORS,
    tensors: tuple[str, ...] = TENSORS,
) -> dict[str, bytes]:
    """Files of an artifact with both native parts, misbehaving as the macros say.

    Args:
        folder: for the compiler.
        forward: macros of the forward part, by name.
        backward: macros of the backward part.
        learned: tensors that ``call.json`` promises gradients of.
        tensors: that ``call.json`` names as arguments.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {"forward": forward or {}, "backward": {"BACKWARD": "1", **(backward or {})}}
    with ThreadPoolExecutor(2) as pool:
        made = list(pool.map(lambda name: _compiled(folder / f"{name}.so", wanted[name]), wanted))
    call = Call(
        tensors=tensors,
        shapes=tuple(SHAPES.get(name, (WIDTH,)) for name in tensors),
        learned=learned,
        channel=1,
        width=WIDTH,
        least=(2,),
    )
    return {
        "forward/model.so": made[0],
        "backward/model.so": made[1],
        "call.json": call.encoded(),
    }


def _compiled(place: Path, macros: dict[str, str]) -> bytes:
    libraries = Path(torch.__file__).parent / "lib"
    command = ["gcc", "-O1", "-w", "-shared", "-fPIC", "-pthread", "-o", str(place), str(SOURCE)]
    command += [f"-D{name}={value}" for name, value in macros.items()]
    command += [f"-L{libraries}", "-ltorch_cpu", "-lm"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"gcc: {done.stderr}")
    return place.read_bytes()

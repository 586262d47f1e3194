"""What a training takes from its process: threads, algorithms, device and random generators."""

import os
import platform
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from esper_runtime.contracts import CheckpointError, EsperError, InputError, Training

_NOT_DETERMINISTIC = "torch.use_deterministic_algorithms"
"""In the text of each error of torch about an operation that is not deterministic."""


@contextmanager
def prepared(training: Training) -> Iterator[torch.device]:
    """Inside, the process computes as the manifest says; afterwards it has the settings it had.

    Yields:
        The device to train on.

    Raises:
        InputError: the manifest wants cuda and there is none; an operation has no deterministic form.
    """
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    fills = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    fast_attention = torch.backends.mha.get_fastpath_enabled()
    searches = torch.backends.cudnn.benchmark
    device = _device(training)
    if device.type == "cuda" and training.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Any hook switches torch's fast path of encoder layers off, which rounds differently: a graft must not.
    torch.backends.mha.set_fastpath_enabled(False)
    torch.set_num_threads(training.threads or 1)
    torch.use_deterministic_algorithms(training.deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if training.deterministic:  # what is fastest at the moment may round differently
        torch.backends.cudnn.benchmark = False
    try:
        yield device
    except (RuntimeError, EsperError) as error:
        if training.deterministic and _NOT_DETERMINISTIC in str(error):
            what = str(error).split(", but you set")[0]
            raise InputError(
                f"spec.training.deterministic is true, but the host or the task uses what cannot be repeated "
                f"bit for bit on {device.type}: {what}. Use another operation, or set "
                f"spec.training.deterministic to false: two runs then differ a little"
            ) from error
        raise
    finally:
        torch.backends.cudnn.benchmark = searches
        torch.backends.mha.set_fastpath_enabled(fast_attention)
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
        torch.utils.deterministic.fill_uninitialized_memory = fills  # type: ignore[attr-defined]


def _device(training: Training) -> torch.device:
    present = torch.cuda.is_available()
    if training.device == "cuda" and not present:
        raise InputError(
            "spec.training.device is 'cuda', but there is no CUDA device here; use 'auto' or 'cpu'"
        )
    return torch.device("cuda" if present and training.device != "cpu" else "cpu")


def describe(device: torch.device) -> dict[str, str]:
    """What decides whether results repeat bit for bit: versions, instruction set, threads, device."""
    facts = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "machine": platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
        "deterministic": str(torch.are_deterministic_algorithms_enabled()).lower(),
        "device": str(device.type),
    }
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
        facts["cuda"] = str(torch.version.cuda)
    return facts


def seed_all(random_seed: int) -> None:
    """Seed the global generators of Python, NumPy and torch, on all devices."""
    random.seed(random_seed)
    np.random.seed(random_seed)
    torch.manual_seed(random_seed)


def random_state() -> dict[str, Tensor]:
    """State of all global random generators, as tensors by name."""
    version, numbers, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state = {
        "torch": torch.get_rng_state(),
        "python": torch.tensor([version, *numbers], dtype=torch.int64),
        "python.gauss": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64),
        f"numpy.{kind}": torch.tensor(np.asarray(keys, dtype=np.int64)),
        "numpy.position": torch.tensor([position, has_gauss], dtype=torch.int64),
        "numpy.gauss": torch.tensor([cached], dtype=torch.float64),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        for index, generator in enumerate(torch.cuda.get_rng_state_all()):
            state[f"cuda.{index}"] = generator
    return state


def set_random_state(state: Mapping[str, Tensor]) -> None:
    """Put all global random generators in the state that `random_state` gave.

    Raises:
        CheckpointError: it is the state of other generators.
    """
    try:
        python = state["python"].tolist()
        gauss = state["python.gauss"].tolist()
        random.setstate((python[0], tuple(python[1:]), gauss[0] if gauss else None))
        position, has_gauss = state["numpy.position"].tolist()
        keys = state["numpy.MT19937"].numpy().astype(np.uint32)
        np.random.set_state(("MT19937", keys, position, has_gauss, state["numpy.gauss"].item()))
        torch.set_rng_state(state["torch"])
        for name, generator in state.items():
            if name.startswith("cuda."):
                torch.cuda.set_rng_state(generator, int(name.removeprefix("cuda.")))
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"the states of the random generators cannot be restored: {error!r}") from error

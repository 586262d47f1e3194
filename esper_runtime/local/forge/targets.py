"""What kernels are made for on this machine, asked of a process that may import torch."""

import asyncio
import json

from esper_runtime.contracts import EsperError
from esper_runtime.local.children import esper_command

_PATIENCE = 120.0


async def local_targets() -> tuple[str, ...]:
    """Names of this machine's targets.

    Raises:
        EsperError: the process that knows them ended without a word, or takes too long.
    """
    process = await asyncio.create_subprocess_exec(
        *esper_command(),
        "worker",
        "targets",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), _PATIENCE)
    except TimeoutError as error:
        process.kill()
        raise EsperError(f"`esper worker targets` did not answer within {_PATIENCE:g} s") from error
    if process.returncode != 0:
        raise EsperError(f"`esper worker targets` failed: {err.decode(errors='replace')[-500:].strip()}")
    return tuple(json.loads(out))

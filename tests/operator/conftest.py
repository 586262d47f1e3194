import asyncio
from collections.abc import Iterator

import pytest

from benchmarks.control_plane import REMEDY, ControlPlane, binaries, control_plane, prepare


@pytest.fixture(scope="session")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A real API server with the project's definitions and the namespaces `team` and `esper`."""
    assets = binaries()
    if assets is None:
        pytest.skip(REMEDY)
    with control_plane(tmp_path_factory.mktemp("control-plane"), assets) as plane:
        asyncio.run(prepare(plane, "team", "esper"))
        yield plane

"""What is sent to an API server, byte for byte: over real HTTP, to a server that only writes it down."""

import asyncio
import json
from collections.abc import Awaitable, Callable

from aiohttp import web
from kubernetes.aio.client.configuration import Configuration

from esper_operator.kube import JOB, RUN, KubeApi, Object

Sent = tuple[str, str, Object]


def sent(work: Callable[[KubeApi], Awaitable[object]]) -> list[Sent]:
    """Verb, path with query, and body of each request."""
    found: list[Sent] = []

    async def take(request: web.Request) -> web.Response:
        found.append((request.method, request.path_qs, json.loads(await request.read() or b"{}")))
        return web.json_response({"kind": "Status", "status": "Success"})

    async def run() -> None:
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", take)
        runner = web.AppRunner(application)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        configuration = Configuration()
        configuration.host = f"http://127.0.0.1:{runner.addresses[0][1]}"
        api = KubeApi(configuration)
        try:
            await work(api)
        finally:
            await api.close()
            await runner.cleanup()

    asyncio.run(run())
    return found


def test_a_deletion_says_which_object_it_means_and_what_becomes_of_its_children() -> None:
    ((verb, path, body),) = sent(lambda api: api.delete(JOB, "team", "small-1", "the-uid", "Foreground"))
    assert (verb, path) == ("DELETE", "/apis/batch/v1/namespaces/team/jobs/small-1")
    assert body.get("propagationPolicy") == "Foreground"
    assert body.get("preconditions") == {"uid": "the-uid"}


def test_a_status_is_applied_to_the_version_that_is_meant() -> None:
    head = {"name": "small", "namespace": "team", "resourceVersion": "7"}
    ((verb, path, body),) = sent(lambda api: api.apply_status(RUN, {"metadata": head, "status": {}}))
    assert verb == "PATCH"
    assert path.startswith("/apis/esper.dev/v1alpha1/namespaces/team/morphogeneticruns/small/status?")
    assert "fieldManager=esper-operator" in path
    assert body["metadata"]["resourceVersion"] == "7"

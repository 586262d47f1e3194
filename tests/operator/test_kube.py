"""What is sent to an API server, byte for byte: over real HTTP, to a server that only writes it down."""

import asyncio
import json
from collections.abc import Awaitable, Callable

import pytest
from aiohttp import web
from kubernetes.aio.client.configuration import Configuration

from esper_operator.kube import JOB, RUN, KubeApi, Object, proxy_for

Sent = tuple[str, str, Object]
Answer = Callable[[web.Request], Awaitable[web.Response]]


def sent(work: Callable[[KubeApi], Awaitable[object]]) -> list[Sent]:
    """Verb, path with query, and body of each request."""
    found: list[Sent] = []

    async def take(request: web.Request) -> web.Response:
        found.append((request.method, request.path_qs, json.loads(await request.read() or b"{}")))
        return web.json_response({"kind": "Status", "status": "Success"})

    asyncio.run(served(take, work))
    return found


async def served(answer: Answer, work: Callable[[KubeApi], Awaitable[object]]) -> None:
    """Work with a server that answers so."""
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    configuration = Configuration()
    configuration.host = f"http://127.0.0.1:{runner.addresses[0][1]}"
    api = KubeApi(configuration)
    try:
        await work(api)
    finally:
        await api.close()
        await runner.cleanup()


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


def test_the_proxy_of_the_environment_is_used_unless_it_is_not_for_the_api_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    monkeypatch.setenv("no_proxy", "10.0.0.1,.svc")
    assert proxy_for("https://api.example:6443") == "http://proxy:3128"
    assert [proxy_for(url) for url in ("https://10.0.0.1:443", "https://kubernetes.default.svc")] == [
        None
    ] * 2
    assert proxy_for("http://api.example") is None


def test_calls_go_through_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    def through(host: str) -> list[Sent]:
        """What comes to a server which is the proxy for all others."""

        async def work(api: KubeApi) -> None:
            configuration = Configuration()
            monkeypatch.setenv("http_proxy", str(api._client.configuration.host))
            configuration.host = host
            behind = KubeApi(configuration)
            await behind.delete(JOB, "team", "small-1", "the-uid", "Foreground")
            await behind.close()

        return sent(work)

    monkeypatch.delenv("no_proxy", raising=False)
    ((verb, path, _),) = through("http://api.example")
    assert (verb, path) == ("DELETE", "/apis/batch/v1/namespaces/team/jobs/small-1")


def test_a_list_comes_in_pages_and_all_of_it_is_taken() -> None:
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.query.get("continue", ""))
        page = int(asked[-1] or 0)
        head = {"resourceVersion": "7"} | ({"continue": str(page + 1)} if page < 2 else {})
        return web.json_response({"metadata": head, "items": [{"page": page}]})

    async def work(api: KubeApi) -> None:
        listed = await api.list(JOB, "team")
        assert (listed.items, listed.version) == ([{"page": page} for page in range(3)], "7")
        assert [page.items async for page in api.pages(JOB, "team")] == [[{"page": n}] for n in range(3)]

    asyncio.run(served(answer, work))
    assert asked == ["", "1", "2"] * 2

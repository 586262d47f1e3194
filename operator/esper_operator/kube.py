"""The Kubernetes API as the operator uses it: few verbs, plain data, typed errors, a limit on every call."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol
from urllib.parse import urlencode, urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration
from kubernetes.aio.config.config_exception import ConfigException
from kubernetes.aio.config.incluster_config import load_incluster_config
from kubernetes.aio.config.kube_config import load_kube_config

from esper_runtime.contracts import API_VERSION, EsperError, InputError

Object = dict[str, Any]
Propagation = Literal["Foreground", "Background", "Orphan"]

FIELD_MANAGER = "esper-operator"
TIMEOUT = 15.0
"""Seconds that one call may take."""
LOOK_BACK = 2
"""Seconds that the API server is given to tell what has happened since a version."""
PAGE = 200
"""Objects in one answer to a list: what is decoded of them at a time is what a process is large by."""


@dataclass(frozen=True)
class Kind:
    """A kind of object, as the API names it."""

    version: str
    name: str
    plural: str

    def path(self, namespace: str | None, name: str | None = None, sub: str | None = None) -> str:
        """The path of a collection, or of an object in it."""
        root = "/api/" if "/" not in self.version else "/apis/"
        parts = [root + self.version]
        if namespace is not None:
            parts += ["namespaces", namespace]
        parts += [part for part in (self.plural, name, sub) if part is not None]
        return "/".join(parts)


RUN = Kind(API_VERSION, "MorphogeneticRun", "morphogeneticruns")
BLUEPRINT = Kind(API_VERSION, "Blueprint", "blueprints")
KERNEL = Kind(API_VERSION, "CompiledKernel", "compiledkernels")
JOB = Kind("batch/v1", "Job", "jobs")
POD = Kind("v1", "Pod", "pods")
SERVICE = Kind("v1", "Service", "services")
CLAIM = Kind("v1", "PersistentVolumeClaim", "persistentvolumeclaims")
SECRET = Kind("v1", "Secret", "secrets")
EVENT = Kind("v1", "Event", "events")
DEPLOYMENT = Kind("apps/v1", "Deployment", "deployments")
LEASE = Kind("coordination.k8s.io/v1", "Lease", "leases")
NETWORK_POLICY = Kind("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies")


class KubeError(EsperError):
    """The API server did not do what was asked.

    Attributes:
        code: HTTP status; 0 where no answer came.
        reason: the server's word for it.
    """

    def __init__(self, what: str, code: int, reason: str, message: str) -> None:
        super().__init__(f"{what}: {message or reason}")
        self.code, self.reason, self.message = code, reason, message


class AlreadyThereError(KubeError):
    """An object of that name exists."""


class ConflictError(KubeError):
    """The object is another one than the one that was meant, or has changed meanwhile."""


class NotThereError(KubeError):
    """There is no such object."""


class ExpiredError(KubeError):
    """The server does not know any more what has happened since that version."""


class RefusedError(KubeError):
    """The server refuses the object or the deed, and would again."""


class UnavailableError(KubeError):
    """The server did not answer in time, or is not well: to be tried again."""


@dataclass(frozen=True)
class Listed:
    """What a list gave, and the version of the collection at that moment."""

    items: list[Object]
    version: str


class Kube(Protocol):
    """What the operator asks of the API server. Every method raises `KubeError`."""

    async def get(self, kind: Kind, namespace: str, name: str) -> Object | None:
        """The object as it is now; None where there is none."""

    async def list(self, kind: Kind, namespace: str | None, labels: str = "", fields: str = "") -> Listed:
        """All objects, of one namespace or of all, that the selectors choose."""

    def pages(self, kind: Kind, namespace: str | None, labels: str = "") -> AsyncIterator[Listed]:
        """The same list in parts, for what is many: at no time is all of it in memory."""

    async def create(self, kind: Kind, body: Object) -> Object:
        """Make an object; `AlreadyThereError` where the name is taken."""

    async def apply(self, kind: Kind, body: Object) -> Object:
        """Server-side apply as the owner of the fields that are given."""

    async def apply_status(self, kind: Kind, body: Object) -> Object:
        """The same for the status, of the version in ``metadata.resourceVersion``; else `ConflictError`.

        The version says which object is meant: the API server does not look at a uid here.
        """

    async def replace(self, kind: Kind, body: Object) -> Object:
        """Replace an object; `ConflictError` where it is no longer of the ``metadata.resourceVersion``."""

    async def delete(
        self, kind: Kind, namespace: str, name: str, uid: str, propagation: Propagation
    ) -> Object | None:
        """Delete that very object; returns what is left of it for now.

        Where it is gone, or another one has its name, nothing happens.
        """

    async def deleted(self, kind: Kind, namespace: str | None, since: str) -> Sequence[Object]:
        """What was deleted since a version of the collection, as it was last; oldest first.

        `ExpiredError` where that is too long ago.
        """


class KubeApi:
    """`Kube` over HTTP, with the client of the package ``kubernetes``.

    Args:
        configuration: where the API server is and how one gets in; see `configured`.
        timeout: seconds that a call may take.
    """

    def __init__(self, configuration: Any, timeout: float = TIMEOUT) -> None:
        self._client: Any = ApiClient(_with_proxy(configuration))
        self._timeout = timeout
        self.calls: dict[tuple[str, str, int], int] = {}
        """How many calls there were, by verb, kind and HTTP status."""

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def get(self, kind: Kind, namespace: str, name: str) -> Object | None:
        """See `Kube`."""
        try:
            return await self._call("GET", kind, kind.path(namespace, name))
        except NotThereError:
            return None

    async def list(self, kind: Kind, namespace: str | None, labels: str = "", fields: str = "") -> Listed:
        """See `Kube`."""
        items: list[Object] = []
        version = ""
        async for page in self._pages(kind, namespace, labels, fields):
            items += page.items
            version = page.version
        return Listed(items, version)

    def pages(self, kind: Kind, namespace: str | None, labels: str = "") -> AsyncIterator[Listed]:
        """See `Kube`."""
        return self._pages(kind, namespace, labels, "")

    async def _pages(
        self, kind: Kind, namespace: str | None, labels: str, fields: str
    ) -> AsyncIterator[Listed]:
        query = {"limit": str(PAGE)} | ({"labelSelector": labels} if labels else {})
        query |= {"fieldSelector": fields} if fields else {}
        while True:
            answer = await self._call("GET", kind, kind.path(namespace), query)
            head = answer.get("metadata") or {}
            yield Listed(answer.pop("items", None) or [], str(head.get("resourceVersion", "")))
            if not head.get("continue"):
                return
            query["continue"] = head["continue"]

    async def create(self, kind: Kind, body: Object) -> Object:
        """See `Kube`."""
        return await self._call(
            "POST",
            kind,
            kind.path(body["metadata"].get("namespace")),
            {"fieldManager": FIELD_MANAGER, "fieldValidation": "Strict"},
            _with_kind(kind, body),
        )

    async def apply(self, kind: Kind, body: Object) -> Object:
        """See `Kube`."""
        return await self._apply(kind, body, None)

    async def apply_status(self, kind: Kind, body: Object) -> Object:
        """See `Kube`."""
        return await self._apply(kind, body, "status")

    async def replace(self, kind: Kind, body: Object) -> Object:
        """See `Kube`."""
        head = body["metadata"]
        path = kind.path(head["namespace"], head["name"])
        return await self._call("PUT", kind, path, {"fieldManager": FIELD_MANAGER}, _with_kind(kind, body))

    async def delete(
        self, kind: Kind, namespace: str, name: str, uid: str, propagation: Propagation
    ) -> Object | None:
        """See `Kube`."""
        options = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": propagation,
            "preconditions": {"uid": uid},
        }
        try:
            left = await self._call("DELETE", kind, kind.path(namespace, name), None, options)
        except (NotThereError, ConflictError):
            return None
        return left if left.get("kind") == kind.name else None

    async def deleted(self, kind: Kind, namespace: str | None, since: str) -> Sequence[Object]:
        """See `Kube`."""
        query = {"watch": "true", "resourceVersion": since, "timeoutSeconds": str(LOOK_BACK)}
        path = kind.path(namespace)
        data = await self._ask("GET", kind, path, query)
        events = [json.loads(line) for line in data.splitlines() if line.strip()]
        for event in events:
            if event["type"] == "ERROR":
                said = event["object"]
                raise error_of(f"GET {path}", int(said.get("code") or 0), json.dumps(said).encode())
        return [event["object"] for event in events if event["type"] == "DELETED"]

    async def _apply(self, kind: Kind, body: Object, sub: str | None) -> Object:
        head = body["metadata"]
        return await self._call(
            "PATCH",
            kind,
            kind.path(head.get("namespace"), head["name"], sub),
            {"fieldManager": FIELD_MANAGER, "force": "true"},
            _with_kind(kind, body),
            "application/apply-patch+yaml",
        )

    async def _call(
        self,
        verb: str,
        kind: Kind,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Object | None = None,
        content: str = "application/json",
    ) -> Object:
        found: Object = json.loads(await self._ask(verb, kind, path, query, body, content))
        return found

    async def _ask(
        self,
        verb: str,
        kind: Kind,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Object | None = None,
        content: str = "application/json",
    ) -> bytes:
        headers = {"Accept": "application/json", "Content-Type": content}
        what = f"{verb} {path}"
        code = 0
        try:
            async with asyncio.timeout(self._timeout):
                await self._client.update_params_for_auth(headers, [], ["BearerToken"], path, verb, body)
                url = self._client.configuration.host + path + ("?" + urlencode(query) if query else "")
                answer = await self._client.rest_client.request(
                    verb, url, headers=headers, body=body, _request_timeout=self._timeout
                )
                data: bytes = await answer.read()
                code = int(answer.status)
        except TimeoutError:
            raise UnavailableError(what, 0, "Timeout", f"no answer within {self._timeout:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise UnavailableError(what, 0, "NoConnection", str(error)) from error
        finally:
            counted = (verb, kind.name, code)
            self.calls[counted] = self.calls.get(counted, 0) + 1
        if code >= 400:
            raise error_of(what, code, data)
        return data


def error_of(what: str, code: int, data: bytes) -> KubeError:
    """The error for an answer with a status of 400 or more."""
    try:
        said = json.loads(data)
        reason, message = str(said.get("reason", "")), str(said.get("message", ""))
    except (ValueError, AttributeError):
        reason, message = "", data[:300].decode(errors="replace")
    kinds: dict[int, type[KubeError]] = {
        404: NotThereError,
        408: UnavailableError,
        410: ExpiredError,
        429: UnavailableError,
    }
    kind: type[KubeError]
    if code == 409:
        kind = AlreadyThereError if reason == "AlreadyExists" else ConflictError
    elif code >= 500:
        kind = UnavailableError
    else:
        kind = kinds.get(code, RefusedError)
    return kind(what, code, reason, message)


async def configured() -> Any:
    """The configuration of a pod's service account, else of ``KUBECONFIG`` or ``~/.kube/config``.

    Raises:
        InputError: there is none of them.
    """
    configuration = Configuration()
    try:
        load_incluster_config(configuration)
        return configuration
    except ConfigException:
        pass
    try:
        await load_kube_config(client_configuration=configuration)
    except ConfigException as error:
        raise InputError(
            f"no way to the API server: this is no pod with a service account, and {error}; set KUBECONFIG"
        ) from error
    return configuration


def proxy_for(url: str) -> str | None:
    """The proxy that the environment names for a URL; None where it is reached directly."""
    parts = urlsplit(url)
    if not parts.hostname or proxy_bypass(parts.hostname):
        return None
    return getproxies().get(parts.scheme)


def _with_proxy(configuration: Any) -> Any:
    """Look the proxy up once: left to itself, aiohttp does so in a thread of its own at every call."""
    if configuration is not None:
        configuration.proxy = configuration.proxy or proxy_for(configuration.host)
        configuration.client_session_kwargs = {"trust_env": False}
    return configuration


def _with_kind(kind: Kind, body: Object) -> Object:
    return {"apiVersion": kind.version, "kind": kind.name, **body}

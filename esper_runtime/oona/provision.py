"""Making ready what a cluster's bus needs: accounts, streams, consumers. All of it may be done again."""

import asyncio
import contextlib
import json
from typing import Any, Self

import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.js.api import StreamConfig

from esper_runtime.contracts import BusError, Channel, name_on_bus, run_subject
from esper_runtime.oona.accounts import (
    BusKeys,
    account_name,
    consumer_name,
    namespace_of_account,
    run_of_account,
)
from esper_runtime.oona.address import BusAddress
from esper_runtime.oona.client import connect, disconnect
from esper_runtime.oona.nkeys import claims
from esper_runtime.oona.receive import ensure_consumer
from esper_runtime.oona.stores import store_configs
from esper_runtime.oona.streams import ensure, library_streams, namespace_streams

PATIENCE = 10.0
"""Seconds that the bus has to take an account, a stream or a consumer."""
IDLE_DAYS = 30.0
"""After so many days without a word the server removes a run's consumer."""

_ATTEMPT = 2.0
_OF_RUN = ("TELEMETRY", "STATE", "EVENTS", "PROGRESS", "WISHES")


class BusKeeper:
    """The operator's hand on a cluster's bus; connections are made when they are needed and kept.

    Args:
        keys: of the bus.
        url: of its servers.
        tls_ca: path of the certificate of its authority; None for a bus without TLS.
        replicas: of each stream.
    """

    def __init__(self, keys: BusKeys, url: str, tls_ca: str | None = None, *, replicas: int = 1) -> None:
        self.keys = keys
        self.replicas = replicas
        self._url, self._tls_ca = url, tls_ca
        self._clients: dict[str, Client] = {}
        self._names: dict[str, str] = {}
        self._attempts: dict[tuple[str, str, str], int] = {}
        self._lock = asyncio.Lock()

    def address(self, creds: str) -> BusAddress:
        """How a user gets in, who is named by the text of a ``.creds`` file."""
        return BusAddress(url=self._url, tls_ca=self._tls_ca, credentials_text=creds)

    async def system(self) -> Client:
        """A connection that may push accounts.

        Raises:
            BusError: the bus cannot be reached, or does not let us in.
        """
        return await self._client("SYS", self.keys.system_creds())

    async def core(self) -> Client:
        """A connection to library and forge with all rights.

        Raises:
            BusError: as `system`.
        """
        return await self._client("CORE", self.keys.operator_creds(None))

    async def namespace(self, namespace: str) -> Client:
        """A connection to the streams of a namespace with all rights.

        Raises:
            BusError: as `system`; also where the namespace was not prepared.
        """
        return await self._client(f"namespace {namespace}", self.keys.operator_creds(namespace))

    async def prepare_core(self) -> list[str]:
        """The accounts of core and roles, and the streams of library and forge.

        Returns:
            The streams that were made: all of them where the bus is new, or was wiped.

        Raises:
            BusError: the bus does not take something, or what is there contradicts it.
        """
        for account, token in self.keys.fixed_accounts().items():
            if account != self.keys.system_account:
                await push_account(await self.system(), token)
        return await self._ensure(await self.core(), (*library_streams(), *store_configs()))

    async def prepare_namespace(self, namespace: str) -> list[str]:
        """The account of a namespace, and the streams of its runs.

        Returns:
            The streams that were made.

        Raises:
            BusError: as `prepare_core`.
        """
        await push_account(await self.system(), self.keys.account_jwt(namespace))
        return await self._ensure(await self.namespace(namespace), namespace_streams())

    async def prepare_run(self, namespace: str, run: str, uid: str, attempt: int) -> bool:
        """The account of a run, into which the user of this attempt is let and those before no more, and the
        consumer of its directives. The namespace is prepared too where that was not done.

        Returns:
            Whether anything had to be made.

        Raises:
            BusError: as `prepare_core`.
        """
        made = await self.prepare_namespace(namespace)
        return await self.admit(namespace, run, uid, attempt) or bool(made)

    async def admit(self, namespace: str, run: str, uid: str, attempt: int) -> bool:
        """`prepare_run` in a namespace that is prepared.

        Returns:
            Whether anything had to be made.

        Raises:
            BusError: as `prepare_core`.
        """
        last = self._attempts[namespace, run, uid] = max(
            attempt, self._attempts.get((namespace, run, uid), 0)
        )
        token = self.keys.run_account_jwt(namespace, run, uid, last)
        pushed = await push_account(await self.system(), token)
        on_bus = name_on_bus(run, uid)
        new = await ensure_consumer(
            (await self.namespace(namespace)).jetstream(timeout=PATIENCE),
            "EVENTS",
            consumer_name(namespace, on_bus),
            run_subject(namespace, on_bus, Channel.DIRECTIVE),
            only_new=True,
            idle=IDLE_DAYS * 86400.0,
        )
        return pushed or new

    async def accounts(self) -> set[str]:
        """Public keys of all accounts that a server knows.

        Raises:
            BusError: the bus does not answer.
        """
        return set(await _known_accounts(await self.system()))

    async def runs(self) -> set[tuple[str, str, str]]:
        """Namespace, name and uid of each run that is let in, whoever let it in.

        Raises:
            BusError: the bus does not answer.
        """
        found = (run_of_account(name) for name in await self._account_names())
        return {run for run in found if run is not None}

    async def namespaces(self) -> set[str]:
        """The namespaces that have an account.

        Raises:
            BusError: the bus does not answer.
        """
        found = (namespace_of_account(name) for name in await self._account_names())
        return {namespace for namespace in found if namespace is not None}

    async def revoke(self, *runs: tuple[str, str, str]) -> None:
        """Let runs in no more: their accounts are forgotten, and their connections are closed.

        Args:
            runs: namespace, name and uid of each.

        Raises:
            BusError: the bus does not take it.
        """
        accounts = [self.keys.run_account(*run) for run in runs]
        await _delete_accounts(await self.system(), self.keys, accounts)

    async def incarnation(self, namespace: str) -> str | None:
        """A word that changes when a namespace's streams are made anew; None where they lack.

        Raises:
            BusError: the bus does not answer, or does not know the namespace.
        """
        js = (await self.namespace(namespace)).jetstream(timeout=PATIENCE)
        try:
            return str((await js.stream_info("EVENTS")).created)
        except nats.js.errors.NotFoundError:
            return None
        except (nats.errors.Error, OSError) as error:
            raise BusError(f"namespace {namespace}: the bus does not say what it has ({error})") from error

    async def runs_on_record(self, namespace: str) -> set[str]:
        """Names on the bus of the runs that a namespace's streams hold anything of, reports apart.

        Raises:
            BusError: the bus does not answer, or does not know the namespace.
        """
        js = (await self.namespace(namespace)).jetstream(timeout=PATIENCE)
        found: set[str] = set()
        try:
            for stream in _OF_RUN:
                subjects = (await js.stream_info(stream, subjects_filter=">")).state.subjects or {}
                found |= {subject.split(".")[3] for subject in subjects}
        except (nats.errors.Error, OSError) as error:
            raise BusError(f"namespace {namespace}: the bus does not say what it has ({error})") from error
        return found

    async def has_heard(self, namespace: str, on_bus: str, durable: str) -> bool:
        """Whether all of a run's journal that the bus has was acknowledged.

        Args:
            namespace: of the run.
            on_bus: its name on the bus.
            durable: the consumer that hears journals.

        Raises:
            BusError: the bus does not answer, or does not know the namespace.
        """
        js = (await self.namespace(namespace)).jetstream(timeout=PATIENCE)
        subject = run_subject(namespace, on_bus, Channel.JOURNAL)
        try:
            said = (await js.stream_info("EVENTS", subjects_filter=subject)).state.subjects
            if not said:
                return True
            last = (await js.get_last_msg("EVENTS", subject, direct=True)).seq or 0
            info = await js.consumer_info("EVENTS", durable)
        except nats.js.errors.NotFoundError:
            return False
        except (nats.errors.Error, OSError) as error:
            raise BusError(f"run {on_bus}: the bus does not say what was heard ({error})") from error
        floor = 0 if info.ack_floor is None else int(info.ack_floor.stream_seq or 0)
        return floor >= last or not (info.num_pending or info.num_ack_pending)

    async def forget_run(self, namespace: str, run: str, uid: str) -> None:
        """`revoke`, and `remove_words`.

        Raises:
            BusError: the bus does not take it.
        """
        await self.revoke((namespace, run, uid))
        await self.remove_words(namespace, name_on_bus(run, uid))

    async def remove_words(self, namespace: str, on_bus: str) -> None:
        """Remove what the bus has of a run; its field reports stay.

        Args:
            namespace: of the run.
            on_bus: its name on the bus.

        Raises:
            BusError: the bus does not take it.
        """
        js = (await self.namespace(namespace)).jetstream(timeout=PATIENCE)
        try:
            for stream in _OF_RUN:
                await js.purge_stream(stream, subject=f"esper.run.{namespace}.{on_bus}.>")
            with contextlib.suppress(nats.js.errors.NotFoundError):
                await js.delete_consumer("EVENTS", consumer_name(namespace, on_bus))
        except (nats.errors.Error, OSError) as error:
            raise BusError(f"run {on_bus}: its messages cannot be removed ({error})") from error

    async def forget_namespace(self, namespace: str) -> None:
        """Remove a namespace's streams and account.

        Raises:
            BusError: the bus does not take it.
        """
        js = (await self.namespace(namespace)).jetstream(timeout=PATIENCE)
        try:
            for config in namespace_streams():
                with contextlib.suppress(nats.js.errors.NotFoundError):
                    await js.delete_stream(str(config.name))
        except (nats.errors.Error, OSError) as error:
            raise BusError(f"namespace {namespace}: its streams cannot be removed ({error})") from error
        await disconnect(self._clients.pop(f"namespace {namespace}"))
        await _delete_accounts(await self.system(), self.keys, [self.keys.namespace_account(namespace)])

    async def close(self) -> None:
        """Close all connections."""
        while self._clients:
            await disconnect(self._clients.popitem()[1])

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _client(self, name: str, creds: str) -> Client:
        async with self._lock:
            known = self._clients.get(name)
            if known is None or known.is_closed:
                self._clients[name] = await connect(self.address(creds), f"esper-operator {name}")
            return self._clients[name]

    async def _account_names(self) -> list[str]:
        """Names of all accounts that a server knows; each is asked for once."""
        system, accounts = await self.system(), await self.accounts()
        for account in accounts - self._names.keys():
            token = await _known_account(system, account)
            if token is not None:
                self._names[account] = account_name(token)
        return [self._names[account] for account in accounts if account in self._names]

    async def _ensure(self, client: Client, configs: tuple[StreamConfig, ...]) -> list[str]:
        copies = [config.evolve(num_replicas=self.replicas) for config in configs]
        return await ensure(client.jetstream(timeout=PATIENCE), copies)


async def push_account(system: Client, token: str) -> bool:
    """Have the servers know an account as its JWT says, unless they do already.

    Args:
        system: a connection as the system's user (`BusKeys.system_creds`).
        token: the account's JWT.

    Returns:
        Whether it was pushed.

    Raises:
        BusError: the servers do not take it.
    """
    account = claims(token)["sub"]
    known = await _known_account(system, account)
    if known is not None and _said(known) == _said(token):
        return False
    await _order(system, "$SYS.REQ.CLAIMS.UPDATE", token, f"account {account}")
    return True


async def _known_account(system: Client, account: str) -> str | None:
    subject = f"$SYS.REQ.ACCOUNT.{account}.CLAIMS.LOOKUP"
    try:
        answer = await system.request(subject, b"", timeout=_ATTEMPT)
    except (nats.errors.Error, OSError) as error:
        raise BusError(f"the bus does not say what it knows of account {account} ({error})") from error
    return answer.data.decode(errors="replace") or None


async def _known_accounts(system: Client) -> list[str]:
    try:
        answer = json.loads((await system.request("$SYS.REQ.CLAIMS.LIST", b"", timeout=PATIENCE)).data)
        return [str(account) for account in answer["data"]]
    except (nats.errors.Error, OSError, ValueError, KeyError, TypeError) as error:
        raise BusError(f"the bus does not say which accounts it knows ({error})") from error


async def _delete_accounts(system: Client, keys: BusKeys, accounts: list[str]) -> None:
    known = [account for account in accounts if await _known_account(system, account) is not None]
    if known:
        order = keys.deletion_jwt(known)
        await _order(system, "$SYS.REQ.CLAIMS.DELETE", order, f"deletion of {', '.join(known)}")


async def _order(system: Client, subject: str, token: str, what: str) -> None:
    try:
        answer = json.loads((await system.request(subject, token.encode(), timeout=PATIENCE)).data)
        error = answer.get("error")
    except (nats.errors.Error, OSError, ValueError, AttributeError) as problem:
        raise BusError(f"{what}: the bus does not answer ({problem or type(problem).__name__})") from problem
    if error is not None:
        raise BusError(f"{what}: the bus refuses it: {error.get('description', error)}")


def _said(token: str) -> dict[str, Any]:
    """What an account's JWT says, without when it was said."""
    found = claims(token)
    nats = dict(found["nats"])
    nats["revocations"] = sorted(nats.get("revocations", {}))
    return {"iss": found.get("iss"), "nats": nats}

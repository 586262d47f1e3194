"""What the release tells the operator: environment variables that the chart sets, each with a flag."""

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from esper_operator.pools import Pool, read_pools
from esper_runtime.contracts import InputError

PREFIX = "ESPER_OPERATOR_"

LEAST_STORAGE = 8 * 1000**3
"""Bytes of a volume that holds library, forge and the runs of a namespace."""

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_LINK = re.compile(r"(SERVICE|PORT)(_.*)?")
"""What Kubernetes itself sets in pods beside a Service of the operator's name."""
_QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?")


@dataclass(frozen=True)
class Settings:
    """Settings of one release.

    Attributes:
        namespace: of the release.
        watch: namespaces whose runs are carried out; empty: all.
        image: that trains, where a run names none.
        image_cuda: that trains runs which ask for NVIDIA GPUs; empty: the same.
        pull_policy: of the release's images.
        pull_secrets: Secrets in the run's namespace that images are pulled with.
        nats_url: of the bus, as pods reach it; empty: runs train without one, and their status says less.
        nats_deployed: whether the release brings the bus and the operator makes its keys.
        bus_keys: folder in which the Secret with the bus's keys is mounted, or will be.
        nats_replicas: servers of the bus, and copies of each stream.
        nats_tls: whether the bus that is made has TLS.
        nats_storage: size of the volume of each of its servers.
        pools: where the forge's workers run.
        priority_training: PriorityClass of training pods; empty: none.
        priority_workers: PriorityClass of workers; empty: none.
        storage_class: of the claims of runs; empty: the cluster's default.
        claim_size: of the claims of runs.
        network_policies: whether training pods may reach only the bus, DNS and what is outside the cluster.
        status_writes: of all runs together, a second.
        health_port: of health and metrics.
        log_level: debug, info, warning or error.
        identity: of this process, in the Lease.
    """

    namespace: str = "esper"
    watch: tuple[str, ...] = ()
    image: str = "esper-runtime:latest"
    image_cuda: str = ""
    pull_policy: str = "IfNotPresent"
    pull_secrets: tuple[str, ...] = ()
    nats_url: str = "tls://esper-nats.esper.svc:4222"
    nats_deployed: bool = True
    bus_keys: str = "/etc/esper-bus"
    nats_replicas: int = 1
    nats_tls: bool = True
    nats_storage: str = "10Gi"
    pools: tuple[Pool, ...] = ()
    priority_training: str = ""
    priority_workers: str = ""
    storage_class: str = ""
    claim_size: str = "10Gi"
    network_policies: bool = False
    status_writes: float = 20
    health_port: int = 8080
    log_level: str = "info"
    identity: str = "esper-operator"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Self:
        """The settings in the variables ``ESPER_OPERATOR_...``; what is not set has its default.

        Raises:
            InputError: a variable is unknown or has no meaning; the text says which and what is allowed.
        """
        given = dict(os.environ if environment is None else environment)
        ours = {name.removeprefix(PREFIX): text for name, text in given.items() if name.startswith(PREFIX)}
        unknown = sorted(name for name in set(ours) - {*READERS, "POD"} if not _LINK.fullmatch(name))
        if unknown:
            known = ", ".join(f"{PREFIX}{name}" for name in sorted(READERS))
            raise InputError(f"{PREFIX}{unknown[0]}: no such setting; settings are {known}")
        values: dict[str, Any] = {"identity": f"{ours.pop('POD', socket.gethostname())}-{os.getpid()}"}
        namespace = ours.get("NAMESPACE", cls.namespace)
        scheme = "nats" if ours.get("NATS_TLS") == "false" else "tls"
        values["nats_url"] = f"{scheme}://esper-nats.{namespace}.svc:4222"
        for name in set(ours) & set(READERS):
            text = ours[name]
            try:
                values[name.lower()] = READERS[name](text)
            except InputError as error:
                raise InputError(f"{PREFIX}{name}: {error}") from None
            except ValueError as error:
                raise InputError(f"{PREFIX}{name}: given {text!r}; allowed: {error}") from None
        return cls(**values)


def _text(text: str) -> str:
    return text


def _image(text: str) -> str:
    if not text or re.search(r"\s", text):
        raise ValueError("an image reference without spaces")
    return text


def _one_of(*allowed: str) -> Any:
    def read(text: str) -> str:
        if text not in allowed:
            raise ValueError(", ".join(allowed))
        return text

    return read


def _namespace(text: str) -> str:
    if _NAME.fullmatch(text) is None:
        raise ValueError("the name of a namespace")
    return text


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not all(re.fullmatch(r"[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?", name) for name in names):
        raise ValueError("names of Kubernetes objects, separated by commas; empty for none")
    return names


def _truth(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError("true or false")
    return text == "true"


def _number(low: int, high: int) -> Any:
    def read(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not low <= int(text) <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return int(text)

    return read


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate <= 1000:
        raise ValueError("a number above 0, at most 1000")
    return rate


def _size(text: str) -> str:
    if _QUANTITY.fullmatch(text) is None:
        raise ValueError("a Kubernetes quantity such as 10Gi")
    return text


def bytes_of(quantity: str) -> int:
    """The bytes of a quantity such as 10Gi."""
    number = quantity.rstrip("imkKMGTPE")
    unit = quantity[len(number) :]
    power = "kMGTPE".index(unit[0].replace("K", "k")) + 1 if unit and unit != "m" else 0
    return int(float(number) * (1024 if unit.endswith("i") else 1000) ** power)


def _volume(text: str) -> str:
    if bytes_of(_size(text)) < LEAST_STORAGE:
        raise ValueError("a Kubernetes quantity of at least 8G: library and forge take 6 GiB of it")
    return text


READERS: dict[str, Any] = {
    "NAMESPACE": _namespace,
    "WATCH": _names,
    "IMAGE": _image,
    "IMAGE_CUDA": _text,
    "PULL_POLICY": _one_of("Always", "IfNotPresent", "Never"),
    "PULL_SECRETS": _names,
    "NATS_URL": _text,
    "NATS_DEPLOYED": _truth,
    "BUS_KEYS": _text,
    "NATS_REPLICAS": _number(1, 9),
    "NATS_TLS": _truth,
    "NATS_STORAGE": _volume,
    "POOLS": read_pools,
    "PRIORITY_TRAINING": _text,
    "PRIORITY_WORKERS": _text,
    "STORAGE_CLASS": _text,
    "CLAIM_SIZE": _size,
    "NETWORK_POLICIES": _truth,
    "STATUS_WRITES": _rate,
    "HEALTH_PORT": _number(1, 65535),
    "LOG_LEVEL": _one_of("debug", "info", "warning", "error"),
    "IDENTITY": _text,
}
"""How each setting is read from text, by the name of its variable without the prefix."""

"""What a manifest may say about its pods; it has a meaning only on Kubernetes."""

from enum import StrEnum
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from esper_runtime.contracts.base import ContractModel, Rule, Says

DnsLabel = Annotated[
    str,
    StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$", max_length=63),
    Says("1 to 63 lower-case letters, digits and '-', no '-' first or last"),
]
DnsName = Annotated[
    str,
    StringConstraints(pattern=r"^[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?$", max_length=253),
    Says("a Kubernetes object name: lower-case letters, digits, '-' and '.'"),
]
Quantity = Annotated[
    str,
    StringConstraints(
        pattern=r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei|e[0-9]{1,2})?$", max_length=32
    ),
    Says("a Kubernetes quantity such as 500m, 2 or 4Gi"),
]
Amount = Quantity | Annotated[int, Field(ge=0)]
Key = Annotated[str, StringConstraints(min_length=1, max_length=317)]
Value = Annotated[str, StringConstraints(max_length=253)]
LabelValue = Annotated[
    str,
    StringConstraints(pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$", max_length=63),
    Says("a label value of at most 63 characters"),
]
MountPath = Annotated[
    str,
    StringConstraints(pattern=r"^/[^:]{1,250}$", max_length=251),
    Says("an absolute path other than '/', without ':'"),
]
OURS = "esper-"
"""Secrets whose names begin so are the operator's own."""


class Resources(ContractModel):
    """Resources of each training pod."""

    requests: dict[Key, Amount] = Field(
        default_factory=dict, max_length=16, description="Asked for: cpu, memory, nvidia.com/gpu, ..."
    )
    limits: dict[Key, Amount] = Field(default_factory=dict, max_length=16, description="At most.")


class Toleration(ContractModel):
    """A taint that the pods tolerate."""

    key: Key | None = Field(default=None, description="Taint key; absent: all keys (operator Exists).")
    operator: Literal["Equal", "Exists"] = Field(default="Equal", description="Equal or Exists.")
    value: Value | None = Field(default=None, description="Taint value (Equal).")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        default=None, description="Absent: all effects."
    )
    toleration_seconds: int | None = Field(
        default=None, ge=0, le=2**31 - 1, description="How long a NoExecute taint is tolerated."
    )


class Medium(StrEnum):
    """What an emptyDir is made of."""

    DISK = "Disk"
    MEMORY = "Memory"


class EmptyDir(ContractModel):
    """Scratch space that ends with the pod."""

    medium: Medium = Field(default=Medium.DISK, description="Disk, or Memory (counts as the pod's memory).")
    size_limit: Quantity | None = Field(default=None, description="Most that may be written.")


class Ephemeral(ContractModel):
    """A claim that is made with the pod and ends with it."""

    storage_class_name: DnsName | None = Field(default=None, description="Default: the cluster's default.")
    size: Quantity = Field(description="Size of the claim.")


class Volume(ContractModel):
    """A volume and where the training sees it. Only these kinds are allowed."""

    kinds: ClassVar[tuple[str, ...]] = ("claim", "config_map", "secret", "empty_dir", "ephemeral")
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "[has(self.claim), has(self.configMap), has(self.secret), has(self.emptyDir), "
            "has(self.ephemeral)].filter(given, given).size() == 1",
            "give exactly one of claim, configMap, secret, emptyDir, ephemeral",
        ),
        Rule(
            f"!has(self.secret) || !self.secret.startsWith('{OURS}')",
            f"secrets named '{OURS}...' are the operator's own; mount one of yours",
        ),
    )

    name: DnsLabel = Field(description="Name of the volume.")
    mount_path: MountPath = Field(description="Where the training sees it.")
    sub_path: Annotated[str, StringConstraints(pattern=r"^[^/.][^:]{0,250}$", max_length=251)] | None = Field(
        default=None, description="A folder inside the volume."
    )
    read_only: bool = Field(default=False, description="Not written to.")
    claim: DnsName | None = Field(default=None, description="Name of a PersistentVolumeClaim.")
    config_map: DnsName | None = Field(default=None, description="Name of a ConfigMap.")
    secret: DnsName | None = Field(default=None, description="Name of a Secret of yours.")
    empty_dir: EmptyDir | None = Field(default=None, description="Scratch space.")
    ephemeral: Ephemeral | None = Field(default=None, description="A claim that ends with the pod.")

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if sum(getattr(self, kind) is not None for kind in self.kinds) != 1:
            raise ValueError("give exactly one of claim, configMap, secret, emptyDir, ephemeral")
        if self.secret is not None and self.secret.startswith(OURS):
            raise ValueError(f"secrets named '{OURS}...' are the operator's own; mount one of yours")
        return self


class KeyOf(ContractModel):
    """One key of a Secret or ConfigMap."""

    name: DnsName = Field(description="Name of the object.")
    key: Key = Field(description="Key in it.")


class Variable(ContractModel):
    """An environment variable: a value, or a key of a Secret or ConfigMap of yours."""

    reserved: ClassVar[tuple[str, ...]] = ("ESPER_", "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_")
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "[has(self.value), has(self.secret), has(self.configMap)].filter(given, given).size() == 1",
            "give exactly one of value, secret, configMap",
        ),
        Rule(
            "!['ESPER_', 'RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_'].exists(p, self.name.startsWith(p))",
            "names that begin with ESPER_, RANK, WORLD_SIZE, LOCAL_RANK or MASTER_ are set by Esper",
        ),
        Rule(
            f"!has(self.secret) || !self.secret.name.startsWith('{OURS}')",
            f"secrets named '{OURS}...' are the operator's own; use one of yours",
        ),
    )

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=128)] = Field(
        description="Name of the variable."
    )
    value: Annotated[str, StringConstraints(max_length=4096)] | None = Field(
        default=None, description="Its value."
    )
    secret: KeyOf | None = Field(default=None, description="From a Secret.")
    config_map: KeyOf | None = Field(default=None, description="From a ConfigMap.")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if sum(given is not None for given in (self.value, self.secret, self.config_map)) != 1:
            raise ValueError("give exactly one of value, secret, configMap")
        if self.name.startswith(self.reserved):
            raise ValueError(
                "names that begin with ESPER_, RANK, WORLD_SIZE, LOCAL_RANK or MASTER_ are set by Esper"
            )
        if self.secret is not None and self.secret.name.startswith(OURS):
            raise ValueError(f"secrets named '{OURS}...' are the operator's own; use one of yours")
        return self


class PodTemplate(ContractModel):
    """What the training pods look like; everything else about them is the operator's."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.volumes) || self.volumes.all(v, self.volumes.exists_one(o, o.name == v.name))",
            "two volumes have the same name; give each its own",
        ),
        Rule(
            "!has(self.volumes) || "
            "self.volumes.all(v, self.volumes.exists_one(o, o.mountPath == v.mountPath))",
            "two volumes have the same mountPath; give each its own",
        ),
    )

    image: Annotated[str, StringConstraints(pattern=r"^[^\s]+$", max_length=512)] | None = Field(
        default=None, description="Default: the release's runtime image."
    )
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = Field(
        default="IfNotPresent", description="Always, IfNotPresent or Never."
    )
    image_pull_secrets: tuple[DnsName, ...] = Field(
        default=(), max_length=8, description="Names of Secrets in the run's namespace."
    )
    resources: Resources = Field(default=Resources(), description="Of each pod.")
    node_selector: dict[Key, LabelValue] = Field(
        default_factory=dict, max_length=16, description="Labels that a node must have."
    )
    tolerations: tuple[Toleration, ...] = Field(default=(), max_length=16, description="Taints tolerated.")
    volumes: tuple[Volume, ...] = Field(default=(), max_length=16, description="Volumes and their mounts.")
    env: tuple[Variable, ...] = Field(default=(), max_length=64, description="Environment variables.")
    runtime_class_name: DnsName | None = Field(default=None, description="RuntimeClass of the pods.")
    priority_class_name: DnsName | None = Field(default=None, description="PriorityClass of the pods.")
    fs_group: int | None = Field(
        default=None, ge=1, le=2**31 - 1, description="Group that owns the volumes; default 10001."
    )
    shared_memory: Quantity | None = Field(default=None, description="Size of /dev/shm; default 1Gi.")
    labels: dict[Key, LabelValue] = Field(
        default_factory=dict, max_length=16, description="Added to the pods."
    )
    annotations: dict[Key, Annotated[str, StringConstraints(max_length=4096)]] = Field(
        default_factory=dict, max_length=16, description="Added to the pods."
    )

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        for what, values in (
            ("name", [volume.name for volume in self.volumes]),
            ("mountPath", [volume.mount_path for volume in self.volumes]),
        ):
            if len(set(values)) != len(values):
                raise ValueError(f"two volumes have the same {what}; give each its own")
        return self


class Deadlines(ContractModel):
    """Time limits of the run as a whole; when one passes, it fails with the reason."""

    pending_seconds: int | None = Field(
        default=None, ge=10, le=31_536_000, description="Pods may wait so long for a node; default: for ever."
    )
    active_seconds: int | None = Field(
        default=None,
        ge=10,
        le=31_536_000,
        description="From the first start to the end, restarts included; default: none.",
    )


_LIMIT = (
    "Pods of an attempt that may fail; one more, and the run fails. Kubernetes waits 10 seconds before the "
    "first new pod, doubled each time, at most 6 minutes."
)


class Retry(ContractModel):
    """What happens after failures. Evictions, drains and exits that say 'resume me' use up no retry."""

    limit: int = Field(default=3, ge=0, le=100, description=_LIMIT)
    restarts: int = Field(
        default=1000, ge=1, le=100_000, description="New starts of any kind; past them the run fails."
    )

"""The pools of the release's values, read strictly: where the forge's workers run."""

import hashlib
import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, ValidationError

from esper_operator.kube import Object
from esper_runtime.contracts import ContractModel, InputError, canonical_json, nearest
from esper_runtime.contracts.base import Says
from esper_runtime.contracts.pods import Key, LabelValue, Resources, Toleration
from esper_runtime.planning import WORKERS, PoolSeen

MOST_POOLS = 20

_Name = Annotated[
    str,
    StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]{0,18}[a-z0-9])?$", max_length=20),
    Says("1 to 20 lower-case letters, digits and '-', no '-' first or last"),
]
_Workers = Annotated[int, Field(ge=0, le=64, strict=True), Says("a whole number from 0 to 64")]
_RuntimeClass = Annotated[
    str,
    StringConstraints(pattern=r"^([a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?)?$", max_length=253),
    Says("the name of a RuntimeClass; empty for none"),
]


class Pool(ContractModel):
    """Nodes of one kind, on which kernels for them are made and tested.

    How many workers of a role there may be stands under the role's name.
    """

    name: _Name
    device: Annotated[Literal["cpu", "cuda"], Says("cpu or cuda")]
    tezzeret: _Workers = 1
    urabrask: _Workers = 1
    karn: _Workers = 1
    node_selector: dict[Key, LabelValue] = Field(default_factory=dict)
    tolerations: tuple[Toleration, ...] = ()
    runtime_class_name: _RuntimeClass = ""
    resources: Resources = Resources()

    def pod(self) -> Object:
        """What of the pool goes into a pod as it is."""
        found: Object = {
            "nodeSelector": dict(self.node_selector),
            "tolerations": [
                item.model_dump(mode="json", by_alias=True, exclude_none=True) for item in self.tolerations
            ],
            "runtimeClassName": self.runtime_class_name,
        }
        return {key: value for key, value in found.items() if value}

    def seen(self, image: str) -> PoolSeen:
        """The pool as the planner sees it.

        Args:
            image: that its workers run.
        """
        limits = {role: int(getattr(self, role.value)) for role in WORKERS}
        made_of = {"image": image, "pool": self.model_dump(mode="json", by_alias=True, exclude={"name"})}
        for role in WORKERS:  # other limits do not make other nodes
            made_of["pool"].pop(role.value)  # type: ignore[attr-defined]
        shape = hashlib.sha256(canonical_json(made_of)).hexdigest()[:16]
        return PoolSeen(self.name, self.device, limits, shape)


def read_pools(text: str) -> tuple[Pool, ...]:
    """The pools in a JSON list.

    Raises:
        InputError: what is wrong, where, and what is allowed.
    """
    try:
        given = json.loads(text or "[]")
    except ValueError:
        given = None
    if not isinstance(given, list) or not all(isinstance(pool, dict) for pool in given):
        raise InputError(f"given {text[:80]!r}; allowed: a JSON list of mappings, one for each pool")
    if len(given) > MOST_POOLS:
        raise InputError(f"given {len(given)} pools; allowed: at most {MOST_POOLS}")
    pools = []
    for index, item in enumerate(given):
        try:
            pools.append(Pool.model_validate(item, by_alias=True, by_name=False))
        except ValidationError as error:
            raise InputError(_wrong(index, item, error)) from None
    names = [pool.name for pool in pools]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"several pools are named {', '.join(twice)}; allowed: each name once")
    return tuple(pools)


def _wrong(index: int, item: Any, error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    place = "".join(
        f"[{part}]" if isinstance(part, int) else f".{part}" for part in (index, *_path(first["loc"], item))
    )
    fields = {field.alias or name: field for name, field in Pool.model_fields.items()}
    if first["type"] == "extra_forbidden":
        name = str(first["loc"][-1])
        near = nearest(name, fields) if len(first["loc"]) == 1 else None
        hint = f"did you mean {near!r}?" if near else f"fields are {', '.join(fields)}"
        return f"pools{place}: there is no such field; {hint}"
    if first["type"] == "missing":
        return f"pools{place}: is needed; allowed: {_allowed(fields, first['loc'], first['msg'])}"
    return (
        f"pools{place}: given {first['input']!r:.80}; allowed: {_allowed(fields, first['loc'], first['msg'])}"
    )


def _path(place: Sequence[int | str], item: Any) -> list[int | str]:
    """The place of an error in what was given; what pydantic adds for the kinds of a union is left out."""
    found: list[int | str] = []
    for part in place:
        inside = isinstance(item, dict) or (isinstance(item, list) and isinstance(part, int))
        if found and not inside:
            break
        found.append(part)
        try:
            item = item[part]
        except (KeyError, IndexError, TypeError):
            item = None
    return found


def _allowed(fields: dict[str, Any], place: Sequence[int | str], message: str) -> str:
    field = fields.get(str(place[0])) if place else None
    words = [item.text for item in getattr(field, "metadata", ()) if isinstance(item, Says)]
    return words[0] if words and len(place) == 1 else message.removeprefix("Input should be ")

"""The base of every model that crosses a border: a file, a message, a resource."""

import json
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel


class ContractModel(BaseModel):
    """camelCase outside, snake_case inside; unknown fields are refused; instances do not change."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        use_enum_values=False,
    )


@dataclass(frozen=True)
class Says:
    """Metadata of a field type: what it allows, in words, where a pattern alone would not be understood."""

    text: str


def canonical_json(data: Any) -> bytes:
    """JSON with sorted keys, no white space, no NaN: the bytes that digests are taken over."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()

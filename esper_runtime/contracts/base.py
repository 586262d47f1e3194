"""The base of every model that crosses a border: a file, a message, a resource."""

import json
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler
from pydantic.alias_generators import to_camel
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema


@dataclass(frozen=True)
class Rule:
    """What must hold between the fields of a model, as the API server checks it.

    ``expression`` is CEL over ``self`` (camelCase; ``oldSelf`` in rules about changes); ``message`` says what
    to do where it does not hold. The model checks the same in a validator of its own.
    """

    expression: str
    message: str


class ContractModel(BaseModel):
    """camelCase outside, snake_case inside; unknown fields are refused; instances do not change."""

    rules: ClassVar[tuple[Rule, ...]] = ()

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        use_enum_values=False,
    )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        schema = handler(core_schema)
        if cls.rules:
            handler.resolve_ref_schema(schema)["x-kubernetes-validations"] = [
                {"rule": rule.expression, "message": rule.message} for rule in cls.rules
            ]
        return schema


@dataclass(frozen=True)
class Says:
    """Metadata of a field type: what it allows, in words, where a pattern alone would not be understood."""

    text: str


def canonical_json(data: Any) -> bytes:
    """JSON with sorted keys, no white space, no NaN: the bytes that digests are taken over."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()

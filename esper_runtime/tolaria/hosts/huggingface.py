"""Models of Hugging Face transformers, built from a class name and a config; nothing is downloaded."""

import importlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

from pydantic import Field
from torch import Tensor, nn

from esper_runtime.contracts import ContractModel, InputError, InterfaceKind
from esper_runtime.tolaria.arguments import nearest, parse_arguments
from esper_runtime.tolaria.sources import user_code
from esper_runtime.tolaria.tasks import TaskShape

INSTALL = "pip install 'esper[huggingface]'"
_OFFLINE = "HF_HUB_OFFLINE"
OUTPUTS = ("logits", "last_hidden_state")
_NO_EFFECT = {"transformers_version", "architectures", "dtype", "return_dict"}
_ATTENTION = ("sdpa", "eager")
_TOKEN_KINDS = ("bos_token_id", "eos_token_id", "sep_token_id", "cls_token_id", "decoder_start_token_id")


class HuggingFaceArguments(ContractModel):
    """Arguments of `huggingface`."""

    model_class: str = Field(alias="class", min_length=1, description="A model class of transformers.")
    config: dict[str, Any] = Field(
        default_factory=dict,
        description="Of the class's config; sizes that follow from the task may be left out.",
    )
    output: str | None = Field(
        default=None, description="Field of the model's output to use; default: logits or last_hidden_state."
    )


class HuggingFaceHost(nn.Module):
    """A model of transformers that takes the task's tensor and yields one tensor.

    Submodule: ``model``. What the task gives beside its first input is handed on by name.
    """

    def __init__(self, model: nn.Module, output: str | None) -> None:
        super().__init__()
        self.model = model
        self.output = output
        self.input_name = str(getattr(model, "main_input_name", "input_ids"))

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        """The chosen output, ``[B, outputs]`` or ``[B, T, outputs]``.

        Raises:
            InputError: the model's output has no such field.
        """
        if not x.is_floating_point():
            x = x.long()
        elif self.input_name == "input_values" and x.dim() == 3:
            x = x.squeeze(1)
        given = self.model(**{self.input_name: x}, **kwargs)
        if isinstance(given, Tensor):
            return given
        name = self.output or next((name for name in OUTPUTS if name in given), "logits")
        chosen = given.get(name)
        if not isinstance(chosen, Tensor):
            raise InputError(
                f"host 'huggingface': {type(self.model).__name__} yields {', '.join(given)}; args.output "
                f"{name!r} is no tensor of these{nearest(name, list(given))}"
            )
        return chosen

    def gradient_checkpointing_enable(self) -> None:
        """Compute activations again in the backward pass instead of keeping them.

        Raises:
            InputError: the model cannot do it.
        """
        model: Any = self.model
        if not getattr(model, "supports_gradient_checkpointing", False):
            raise InputError(
                f"training.gradientCheckpointing: {type(model).__name__} of transformers has no gradient "
                "checkpointing; set it to false"
            )
        enable = (
            getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        )
        enable({"use_reentrant": False})


def huggingface(shape: TaskShape, args: Mapping[str, Any], what: str) -> HuggingFaceHost:
    """Build a model of transformers for a task, with random weights.

    Config values that follow from the task are set where they are not given: vocab_size, num_labels,
    image_size, num_channels; no key-value cache, and no special tokens.

    Args:
        shape: what the host must take and yield.
        args: of the manifest.
        what: names the host in messages.

    Raises:
        InputError: transformers is not installed; there is no such class or key; the config is refused.
    """
    parsed = parse_arguments(HuggingFaceArguments, args, what)
    with _offline():
        kind = _model_class(_transformers(what), parsed.model_class, what)
        values = _config_values(kind.config_class, parsed.config, shape, what)
        given = f"{what}: {kind.config_class.__name__} and {kind.__name__} with {values}"
        with user_code(given):
            model: nn.Module = kind(kind.config_class(**values))
    return HuggingFaceHost(model, parsed.output)


@contextmanager
def _offline() -> Iterator[None]:
    """Inside, the hub's client refuses every request."""
    try:
        constants: Any = importlib.import_module("huggingface_hub.constants")
    except ImportError:  # then transformers is missing too, which is said where it is imported
        constants = SimpleNamespace(HF_HUB_OFFLINE=True)
    kept, before = constants.HF_HUB_OFFLINE, os.environ.get(_OFFLINE)
    constants.HF_HUB_OFFLINE, os.environ[_OFFLINE] = True, "1"
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = kept
        del os.environ[_OFFLINE]
        if before is not None:
            os.environ[_OFFLINE] = before


def _transformers(what: str) -> Any:
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        raise InputError(
            f"{what}: needs the package transformers ({error}); install it: {INSTALL}"
        ) from error


def _model_class(transformers: Any, name: str, what: str) -> Any:
    known = [other for other in dir(transformers) if "For" in other or other.endswith(("Model", "HeadModel"))]
    try:
        kind = getattr(transformers, name) if name.isidentifier() and not name.startswith("_") else None
    except (AttributeError, ImportError) as error:
        if name in known:
            raise InputError(f"{what}: class {name} of transformers cannot be imported: {error}") from error
        kind = None
    if kind is None:
        raise InputError(f"{what}: args.class: transformers has no class {name!r}{nearest(name, known)}")
    models = isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)
    if not models or getattr(kind, "config_class", None) is None:
        raise InputError(
            f"{what}: args.class: {name} is no model that a config makes; give a class such as "
            "GPT2LMHeadModel, BertForSequenceClassification or ViTForImageClassification"
            f"{nearest(name + 'Model', known)}"
        )
    return kind


def _config_values(
    config_class: Any, given: Mapping[str, Any], shape: TaskShape, what: str
) -> dict[str, Any]:
    """The given values, checked, and those that follow from the task."""
    own = {field.name: field for field in fields(config_class) if not field.name.startswith("_")}
    aliases = dict(getattr(config_class, "attribute_map", {}))
    known = (own.keys() | aliases.keys() | {"num_labels", "attn_implementation"}) - _NO_EFFECT
    for name, value in given.items():
        if name not in known:
            raise InputError(
                f"{what}: args.config: {config_class.__name__} has no key {name!r}{nearest(name, known)} "
                f"(keys: {', '.join(sorted(known))})"
            )
        if name == "attn_implementation" and value not in _ATTENTION:
            raise InputError(
                f"{what}: args.config.attn_implementation is {value!r}; allowed: {', '.join(_ATTENTION)}"
            )
    values = dict(given)
    taken = set(given) | {aliases[name] for name in given if name in aliases}

    def default(name: str, value: Any) -> None:
        if name in known and aliases.get(name, name) not in taken and name not in taken:
            values[name] = value

    if shape.vocabulary is not None:
        default("vocab_size", max(shape.vocabulary, shape.outputs if shape.per_position else 0))
        for name in ("pad_token_id", *_TOKEN_KINDS):
            if name == "pad_token_id" or _beyond(own.get(name), values.get("vocab_size")):
                default(name, None)
    if not shape.per_position:
        default("num_labels", shape.outputs)
    if shape.kind is InterfaceKind.IMAGE:
        channels, height, width = shape.example
        default("num_channels", channels)
        default("image_size", height if height == width else (height, width))
    default("use_cache", False)
    return values


def _beyond(field: Any, vocabulary: Any) -> bool:
    """True for a token id that the vocabulary does not have."""
    first = getattr(field, "default", None)
    return isinstance(first, int) and isinstance(vocabulary, int) and first >= vocabulary

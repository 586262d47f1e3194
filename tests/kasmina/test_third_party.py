"""Hosts that other people wrote: what their modules return, and models of transformers."""

import copy
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from esper_runtime.blueprint import misfit
from esper_runtime.contracts import Directive, GraftingPlan, Operation
from esper_runtime.kasmina import Growable, wrap
from esper_runtime.kasmina.nested import first_tensor, with_first_tensor

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
Pair = namedtuple("Pair", "hidden rest")


@dataclass
class Plain:
    name: str
    hidden: Tensor
    rest: Any = None


@dataclass(frozen=True)
class Derived:
    hidden: Tensor
    size: int = field(init=False, default=0)


SHAPES: dict[str, Callable[[Tensor], Any]] = {
    "tensor": lambda h: h,
    "tuple": lambda h: (h, None),
    "named tuple": lambda h: Pair(h, 3),
    "list in a tuple": lambda h: ([None, h], 3),
    "dict": lambda h: {"size": 3, "hidden": h},
    "ordered dict": lambda h: OrderedDict(hidden=h),
    "dataclass": lambda h: Plain("x", h),
    "frozen dataclass with a derived field": lambda h: Derived(h),
    "dict of dataclasses": lambda h: {"levels": (Plain("x", h),)},
}


class Block(nn.Module):
    def __init__(self, shape: str) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.shape = shape

    def forward(self, x: Tensor) -> Any:
        return SHAPES[self.shape](x + torch.tanh(self.layer(x)))


class Host(nn.Module):
    def __init__(self, shape: str) -> None:
        super().__init__()
        self.inlet = nn.Linear(6, 8)
        self.block = Block(shape)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Any:
        found = first_tensor(self.block(torch.relu(self.inlet(x))))
        return SHAPES[self.block.shape](self.head(found))


def plant(model: Growable, slot: str) -> str:
    interface = model.place(slot).interface
    blueprint = next(i for i, b in model.blueprints.items() if misfit(b, interface) is None)
    germinate = Operation.GERMINATE
    model.submit(
        Directive(
            operation=germinate, slot=slot, blueprint=blueprint, plan=GraftingPlan(), explanation="a test"
        )
    )
    changes = model.boundary(0)
    assert not changes.refused, changes.refused
    return changes.born[0].identity


def awake(model: Growable) -> None:
    for seed in model.seeds:
        for parameter in seed.body.parameters():
            nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(parameter.numel()))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_first_tensor_is_replaced_and_the_rest_kept(shape: str) -> None:
    one, other = torch.zeros(2), torch.ones(2)
    given = SHAPES[shape](one)
    changed = with_first_tensor(given, other)
    assert type(changed) is type(given)
    assert first_tensor(changed) is other
    assert first_tensor(given) is one, "what the module returned was changed"


@pytest.mark.parametrize("shape", SHAPES)
def test_a_seed_grows_behind_a_block_whatever_it_returns(shape: str) -> None:
    torch.manual_seed(0)
    host = Host(shape)
    model = wrap(host, X)
    assert "block.output" in model.slots
    before = first_tensor(model(X))
    plant(model, "block.output")
    assert before is not None
    assert torch.equal(before, first_tensor(model(X)))  # type: ignore[arg-type]
    awake(model)
    output = model(X)
    assert type(output) is type(SHAPES[shape](X))
    grown = first_tensor(output)
    assert grown is not None
    assert (grown - before).abs().max() > 1e-3
    grown.sum().backward()
    assert all(p.grad is not None for seed in model.seeds for p in seed.body.parameters())


class Tied(nn.Module):
    """An embedding whose weight is the head's too, and a block that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.block = Block("tuple")
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        h = self.block(self.embedding(ids))[0]
        return self.head(self.block(h)[0])


def test_tied_weights_and_shared_modules_stay_so_in_a_grown_copy() -> None:
    torch.manual_seed(0)
    ids = torch.randint(11, (3, 5))
    model = wrap(Tied(), ids)
    parameters = model.host_parameters
    assert parameters == 11 * 8 + 8 * 8 + 8, "the tied weight is counted once"
    assert {"block.output", "block.output#1"} <= set(model.slots)
    plant(model, "block.output#1")
    awake(model)
    twin = copy.deepcopy(model)
    host: Any = twin.host
    assert host.head.weight is host.embedding.weight
    assert torch.equal(model(ids), twin(ids))
    model(ids).sum().backward()
    assert [n for n, _ in model.host.named_parameters()] == [
        "embedding.weight",
        "block.layer.weight",
        "block.layer.bias",
    ]


MODELS: dict[str, tuple[dict[str, Any], str]] = {
    "BertForSequenceClassification": (
        {
            "vocab_size": 20,
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 16,
        },
        "input_ids",
    ),
    "LlamaForCausalLM": (
        {
            "vocab_size": 20,
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 16,
        },
        "input_ids",
    ),
    "ResNetForImageClassification": (
        {"num_channels": 1, "embedding_size": 8, "hidden_sizes": [8], "depths": [1], "layer_type": "basic"},
        "pixel_values",
    ),
    "ViTForImageClassification": (
        {
            "num_channels": 1,
            "image_size": 8,
            "patch_size": 4,
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 16,
        },
        "pixel_values",
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_transformers_is_wrapped_exactly_and_grows_at_every_slot(name: str) -> None:
    transformers = pytest.importorskip("transformers", reason="the extra 'huggingface' is not installed")
    torch.manual_seed(0)
    config, key = MODELS[name]
    kind = getattr(transformers, name)
    host = kind(kind.config_class(**config)).train()
    given = torch.randn(2, 1, 8, 8) if key == "pixel_values" else torch.randint(3, 20, (2, 6))
    bare, keys = copy.deepcopy(host), list(host.state_dict())
    model = wrap(host, {key: given})
    outputs = []
    for module in (bare, model):
        torch.manual_seed(1)
        outputs.append(module(**{key: given}).logits)
    assert torch.equal(*outputs)
    assert list(host.state_dict()) == keys
    host.eval()
    before = model(**{key: given}).logits
    reached = []
    for slot in model.slots:
        identity = plant(model, slot)
        assert torch.equal(model(**{key: given}).logits, before), slot
        awake(model)
        with torch.no_grad():
            reached.append(not torch.equal(model(**{key: given}).logits, before))
        model.discard(model.seed(identity))
    assert sum(reached) >= len(reached) - 1, "seeds do not reach the output"


def test_a_whole_model_that_returns_a_model_output_keeps_its_type() -> None:
    transformers = pytest.importorskip("transformers", reason="the extra 'huggingface' is not installed")
    output = transformers.modeling_outputs.BaseModelOutput(last_hidden_state=X)
    changed = with_first_tensor(output, X + 1)
    assert type(changed) is type(output)
    assert torch.equal(changed.last_hidden_state, X + 1)
    assert torch.equal(changed["last_hidden_state"], X + 1)
    assert torch.equal(output.last_hidden_state, X)

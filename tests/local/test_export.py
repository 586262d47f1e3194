"""Exports of hosts that take inputs by name, as encoder-decoders do."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from esper_runtime.contracts import Directive, GraftingPlan, Operation, OutputFormat, Source
from esper_runtime.kasmina import Growable, candidates, wrap
from esper_runtime.local.export import Call, export_model
from esper_runtime.tolaria import build_host, load_task

TOKENS = {"goal": "reverse", "vocabulary": 12, "length": 8, "examples": 200}
CONFIG = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}


@pytest.fixture(scope="module")
def grown() -> tuple[Growable, Callable[[int], Call]]:
    """T5 with a seed in it, and inputs for a number of examples."""
    pytest.importorskip("transformers")
    task = load_task(Source(builtin="tokens", args=TOKENS), 0)
    args = {"class": "T5ForConditionalGeneration", "config": CONFIG}
    host = build_host(Source(builtin="huggingface", args=args), task, 0)

    def inputs(examples: int) -> Call:
        return task.inputs({name: tensor[:examples] for name, tensor in task.validation.items()})

    (x,), named = inputs(2)
    model = wrap(host, {"x": x, **named})
    first = next(candidate for candidate in candidates(model) if candidate.parameters)
    model.submit(
        Directive(
            operation=Operation.GERMINATE,
            slot=first.slot,
            blueprint=first.blueprint,
            plan=GraftingPlan(),
            explanation="to be exported",
        )
    )
    assert not model.boundary(0).refused
    (seed,) = model.seeds
    for parameter in seed.body.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(0))
    return model.eval(), inputs


@pytest.mark.parametrize("kind", [OutputFormat.TORCH, OutputFormat.TORCH_EXPORT, OutputFormat.ONNX])
def test_an_encoder_decoder_is_exported_with_a_free_batch_axis(grown: Any, kind: OutputFormat) -> None:
    if kind is OutputFormat.ONNX:
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    model, inputs = grown
    keys = list(model.state_dict())
    blobs, difference = export_model(model, kind, inputs)
    assert blobs
    assert difference <= 1e-5
    assert "forward" not in vars(model), "the model is as it was"
    assert list(model.state_dict()) == keys


def test_the_inputs_of_a_program_have_the_hosts_names(grown: Any, tmp_path: Any) -> None:
    model, inputs = grown
    blobs, _ = export_model(model, OutputFormat.TORCH_EXPORT, inputs)
    (tmp_path / "model.pt2").write_bytes(blobs["model.pt2"])
    program = torch.export.load(tmp_path / "model.pt2")
    assert list(program.graph_signature.user_inputs) == ["x", "decoder_input_ids"]
    args, kwargs = inputs(5)
    with torch.no_grad():
        assert torch.allclose(program.module()(*args, **kwargs), model(*args, **kwargs), atol=1e-5)

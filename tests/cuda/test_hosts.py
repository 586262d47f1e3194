"""Hosts of several kinds on the GPU: dormant slots change nothing, they grow, resume, and are exported."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from esper_runtime.contracts import OutputFormat, SeedChanged, SeedStage
from esper_runtime.kasmina import wrap
from esper_runtime.local.export import export_run
from esper_runtime.local.folder import RunFolder
from esper_runtime.tolaria import load
from esper_runtime.tolaria.macs import count_macs
from tests.cuda.runs import DEVICE, on_gpu, replayed
from tests.tolaria.runs import IMMEDIATE, ISOLATED, Script, train

TOKENS: dict[str, Any] = {"vocabulary": 12, "length": 8, "examples": 400}
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def tokens(goal: str) -> dict[str, Any]:
    return {"builtin": "tokens", "args": {"goal": goal, **TOKENS}}


def of_transformers(name: str, **config: Any) -> dict[str, Any]:
    return {"builtin": "huggingface", "args": {"class": name, "config": config}}


HOSTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "cnn2d": ({"builtin": "cnn2d"}, {"builtin": "digits"}),
    "transformer": (
        {"builtin": "transformer", "args": {"width": 16, "heads": 2, "depth": 2}},
        tokens("next"),
    ),
    "GPT2LMHeadModel": (
        of_transformers("GPT2LMHeadModel", n_embd=16, n_layer=2, n_head=2, n_positions=16),
        tokens("next"),
    ),
    "BertForSequenceClassification": (
        of_transformers("BertForSequenceClassification", **SMALL, max_position_embeddings=16),
        tokens("most-frequent"),
    ),
    "ViTForImageClassification": (
        of_transformers("ViTForImageClassification", **SMALL, patch_size=2),
        {"builtin": "digits"},
    ),
    "LlamaForCausalLM": (
        of_transformers("LlamaForCausalLM", **SMALL, max_position_embeddings=16),
        tokens("next"),
    ),
    "T5ForConditionalGeneration": (
        of_transformers("T5ForConditionalGeneration", d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2),
        tokens("reverse"),
    ),
}


@pytest.mark.parametrize("name", HOSTS)
def test_it_grows_resumes_and_replays_bit_for_bit_and_is_read_on_the_cpu(name: str, tmp_path: Path) -> None:
    if name[0].isupper():
        pytest.importorskip("transformers")
    host, task = HOSTS[name]
    run = on_gpu(60, host=host, task=task, training={"optimizer": {"learningRate": 0.005}})
    plants = ((5, IMMEDIATE), (10, ISOLATED))
    whole, trainer, result = train(run, tmp_path / "whole", Script(*plants))
    half, _, _ = train(run, tmp_path / "parts", Script(*plants), stop_at=33)
    rest, _, second = train(run, tmp_path / "parts", Script(*plants))
    assert {**half.losses, **rest.losses} == whole.losses
    assert second.finished.weights_digest == result.finished.weights_digest
    assert [e.after for e in whole.of(SeedChanged)].count(SeedStage.FOSSILIZED) >= 1
    assert result.finished.ledger["forward"] > 0
    assert replayed(tmp_path / "whole").equal
    parts = trainer._loop.parts
    batch = {key: tensor[:8] for key, tensor in parts.task.validation.items()}
    args, kwargs = parts.task.inputs(batch)
    tf32, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    with torch.no_grad():
        there = parts.model.eval()(
            *(value.to(DEVICE) for value in args), **{k: v.to(DEVICE) for k, v in kwargs.items()}
        )
        here = load(tmp_path / "whole" / "model")(*args, **kwargs)
    torch.backends.cudnn.allow_tf32 = tf32
    assert (there.cpu() - here).abs().max() < 1e-4 * max(1.0, float(here.abs().max()))


@pytest.mark.parametrize("kind", [OutputFormat.TORCH, OutputFormat.TORCH_EXPORT])
def test_a_run_on_the_gpu_is_exported(tmp_path: Path, kind: OutputFormat) -> None:
    host, task = HOSTS["cnn2d"]
    train(on_gpu(40, host=host, task=task), tmp_path / "run", Script((5, IMMEDIATE)))
    exported = export_run(RunFolder(tmp_path / "run"), kind, str(tmp_path / "out"))
    assert exported.difference is not None
    assert exported.difference <= 1e-5
    assert all(Path(file).exists() for file in exported.files)


def test_gradient_checkpointing_changes_no_loss(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    losses = []
    for on in (False, True):
        host, task = HOSTS["GPT2LMHeadModel"]
        run = on_gpu(20, host=host, task=task, training={"gradientCheckpointing": on})
        found, _, _ = train(run, tmp_path / str(on), Script((4, IMMEDIATE), (8, ISOLATED)))
        losses.append(found.losses)
    assert losses[0] == losses[1]


def test_a_host_with_dormant_slots_computes_what_it_did() -> None:
    torch.manual_seed(0)
    host = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(288, 10)
    ).to(DEVICE)
    x = torch.randn(16, 1, 8, 8, device=DEVICE)
    torch.manual_seed(1)
    before = host(x)
    model = wrap(host, x[:2])
    torch.manual_seed(1)
    host[1].reset_running_stats()
    assert torch.equal(model(x), before)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_of_cudnn_are_counted(kind: Any) -> None:
    layer = kind(8, 16, num_layers=2, batch_first=True)
    x = torch.randn(4, 5, 8)

    def passed(module: nn.Module, given: torch.Tensor) -> int:
        macs, _ = count_macs(lambda: module(given)[0].sum().backward())
        return macs

    matrices = sum(p.numel() for p in layer.parameters() if p.dim() == 2)
    assert passed(layer.to(DEVICE), x.to(DEVICE)) == 3 * 4 * 5 * matrices

"""Models of transformers by class name and config, as hosts of runs."""

from pathlib import Path
from typing import Any

import pytest
import torch

from esper_runtime.contracts import HostError, InputError, SeedChanged, SeedStage, Source, parse_run
from esper_runtime.tolaria import build_host, load, load_task
from tests.tolaria.runs import IMMEDIATE, ISOLATED, Script, manifest, train

pytest.importorskip("transformers", reason="the extra 'huggingface' is not installed")

TOKENS: dict[str, Any] = {"vocabulary": 12, "length": 8, "examples": 300}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}


FEW: dict[str, Any] = {
    "budget": {"parameters": "6x"},
    "blueprints": {"include": ["mlp-tokens", "low-rank-tokens"]},
    "slots": {"exclude": ["*..*"]},
}


def task(goal: str = "next") -> dict[str, Any]:
    return {"builtin": "tokens", "args": {"goal": goal, **TOKENS}}


def host(name: str = "GPT2LMHeadModel", config: dict[str, Any] = GPT2, **args: Any) -> dict[str, Any]:
    return {"builtin": "huggingface", "args": {"class": name, "config": config, **args}}


def build(given: dict[str, Any], goal: str = "next") -> torch.nn.Module:
    data = load_task(Source(**task(goal)), 0)
    return build_host(Source(**given), data, 0)


def test_sizes_follow_from_the_task() -> None:
    model: Any = build(host())
    assert model.model.config.vocab_size == 12
    assert not model.model.config.use_cache
    classifier: Any = build(
        host(
            "BertForSequenceClassification",
            {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 16},
        ),
        "most-frequent",
    )
    assert classifier.model.config.num_labels == 4
    assert classifier(torch.ones(3, 8, dtype=torch.int32)).shape == (3, 4)


def test_an_alias_of_a_config_key_keeps_its_value() -> None:
    model: Any = build(host(config={**GPT2, "vocab_size": 20, "num_hidden_layers": 1} | {"n_layer": 1}))
    assert model.model.config.vocab_size == 20


def test_building_leaves_the_random_state_and_repeats_itself() -> None:
    before = torch.get_rng_state()
    one, other = build(host()).state_dict(), build(host()).state_dict()
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (host("GPT2LMHeadModle"), "did you mean 'GPT2LMHeadModel'?"),
        (host("GPT2Config"), "is no model that a config makes"),
        (host("AutoModelForCausalLM"), "is no model that a config makes"),
        (host("__import__"), "transformers has no class"),
        (host(config={**GPT2, "n_layers": 2}), "no key 'n_layers'; did you mean 'n_layer'?"),
        (host(config={**GPT2, "n_layer": "two"}), "n_layer"),
        (host(config={**GPT2, "n_head": 3}), "GPT2Config and GPT2LMHeadModel"),
        (host(config={**GPT2, "attn_implementation": "kernels-community/x"}), "allowed: sdpa, eager"),
        (host(output="logit"), "did you mean 'logits'?"),
        (host(conf={}), "unknown argument; did you mean 'config'?"),
    ],
)
def test_a_wrong_class_or_config_is_refused_with_what_would_work(given: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError) as refusal:
        build(given)
    assert text in str(refusal.value)


def test_nothing_is_asked_of_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a connection was made")

    import huggingface_hub.constants as hub

    before = hub.HF_HUB_OFFLINE
    monkeypatch.setattr(socket.socket, "connect", refuse)
    build(host())
    assert hub.HF_HUB_OFFLINE is before


def test_a_missing_package_is_said_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"pip install 'esper\[huggingface\]'"):
        build(host())


def test_tied_weights_stay_tied_and_are_counted_once(tmp_path: Path) -> None:
    run = manifest(30, host=host(), task=task(), growth=FEW)
    _, trainer, _ = train(run, tmp_path, Script((5, IMMEDIATE)))
    assert trainer._loop is not None
    model = trainer._loop.parts.model
    inner: Any = model.host
    assert inner.model.lm_head.weight is inner.model.transformer.wte.weight
    names = [name for name, p in model.named_parameters() if p is inner.model.lm_head.weight]
    again: Any = load(tmp_path / "model")
    assert again.host.model.lm_head.weight is again.host.model.transformer.wte.weight
    assert names == [n for n, p in again.named_parameters() if p is again.host.model.lm_head.weight]
    x = torch.ones(2, 8, dtype=torch.long)
    assert torch.equal(model.eval()(x), again(x))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_run_grows_and_resumes_bit_for_bit(tmp_path: Path, checkpointing: bool) -> None:
    training = {"gradientCheckpointing": checkpointing, "validation": {"everySteps": 10}}
    growth = {
        **FEW,
        "controller": {"everySteps": 5},
        "gates": {"validationExamples": 30},
    }
    run = manifest(50, host=host(), task=task(), training=training, growth=growth)
    plants = (4, IMMEDIATE), (8, ISOLATED)
    whole, first, _ = train(run, tmp_path / "whole", Script(*plants))
    half, _, _ = train(run, tmp_path / "parts", Script(*plants), stop_at=27)
    rest, second, _ = train(run, tmp_path / "parts", Script(*plants))
    assert {**half.losses, **rest.losses} == whole.losses
    assert first._loop is not None
    assert second._loop is not None
    one, other = (t._loop.parts.model.state_dict() for t in (first, second))  # type: ignore[union-attr]
    assert all(torch.equal(one[name], other[name]) for name in one)
    stages = [event.after for event in whole.of(SeedChanged)]
    assert stages.count(SeedStage.FOSSILIZED) == 2
    assert SeedStage.TRAINING in stages


def test_gradient_checkpointing_changes_no_loss(tmp_path: Path) -> None:
    losses = []
    for on in (False, True):
        run = manifest(
            20,
            host=host(),
            task=task(),
            training={"gradientCheckpointing": on},
            growth={**FEW, "controller": {"everySteps": 5}},
        )
        found, _, _ = train(run, tmp_path / str(on), Script((4, IMMEDIATE), (8, ISOLATED)))
        losses.append(found.losses)
    assert losses[0] == losses[1]


def test_an_encoder_decoder_learns_to_reverse(tmp_path: Path) -> None:
    run = manifest(
        40,
        host=host("T5ForConditionalGeneration", T5),
        task=task("reverse"),
        growth={**FEW, "controller": {"everySteps": 5}},
    )
    found, _, result = train(run, tmp_path, Script((5, IMMEDIATE)))
    assert result.outcome == "Complete"
    assert found.losses[40] < found.losses[1]


def test_gradient_checkpointing_of_a_host_without_it_is_refused(tmp_path: Path) -> None:
    run = manifest(10, training={"gradientCheckpointing": True})
    with pytest.raises(InputError, match="gradient_checkpointing_enable"):
        train(run, tmp_path, Script())


def test_an_encoder_decoder_task_on_a_plain_host_names_what_it_lacks() -> None:
    with pytest.raises((InputError, HostError), match="decoder_input_ids"):
        build({"builtin": "transformer"}, "reverse")


def test_the_example_is_a_valid_manifest() -> None:
    import yaml

    text = Path("examples/gpt2.yaml").read_text(encoding="utf-8")
    run = parse_run(yaml.safe_load(text), "examples/gpt2.yaml")
    assert run.spec.host.builtin == "huggingface"

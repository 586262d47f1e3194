"""Bars: hosts that other people wrote. Each is wrapped, grows, is resumed and exported.

Every host is built from its class and a small config, with random weights, and trained for a minute's work on
built-in data by the real trainer, with a script that plants one seed that contributes at once and one that
learns behind the host first.
"""

import copy
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from benchmarks.line import bar
from esper_runtime.blueprint import misfit
from esper_runtime.contracts import (
    Directive,
    EsperError,
    GraftingPlan,
    InterfaceKind,
    MorphogeneticRun,
    Operation,
    OutputFormat,
    PlanKind,
    SeedChanged,
    SeedStage,
    Source,
    parse_run,
)
from esper_runtime.kasmina import Growable, wrap
from esper_runtime.local import RunFolder, export_run
from esper_runtime.tolaria import ClassificationTask, TaskShape, Trainer, build_host, load, load_task
from tests.tolaria.runs import Recorder, Script

STEPS, STOP = 60, 33
IMMEDIATE = GraftingPlan(grafting_steps=10, warmup_steps=4)
ISOLATED = GraftingPlan(kind=PlanKind.ISOLATED, training_steps=10, ramp_steps=4, grafting_steps=6)
TOLERANCE = 1e-5
SLOTS_TRIED = 8

TOKENS: dict[str, Any] = {"vocabulary": 12, "length": 10, "examples": 600}
NEXT = {"builtin": "tokens", "args": {"goal": "next", **TOKENS}}
FREQUENT = {"builtin": "tokens", "args": {"goal": "most-frequent", **TOKENS}}
REVERSE = {"builtin": "tokens", "args": {"goal": "reverse", **TOKENS}}
DIGITS = {"builtin": "digits"}
SERIES = {"builtin": "mnist1d"}
SPECTRA = {"entrypoint": "benchmarks.third_party:spectra"}
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


@dataclass(frozen=True)
class Case:
    """A host, the task it is trained on, and settings of the training."""

    name: str
    host: dict[str, Any]
    task: dict[str, Any]
    training: dict[str, Any] = field(default_factory=dict)


def _of_transformers(name: str, task: dict[str, Any], config: dict[str, Any], **training: Any) -> Case:
    host = {"builtin": "huggingface", "args": {"class": name, "config": config}}
    return Case(name, host, task, training)


def _own(function: str, task: dict[str, Any], **training: Any) -> Case:
    return Case(function, {"entrypoint": f"benchmarks.third_party:{function}"}, task, training)


CASES = (
    _of_transformers("GPT2LMHeadModel", NEXT, {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16}),
    _of_transformers("BertForSequenceClassification", FREQUENT, {**SMALL, "max_position_embeddings": 16}),
    _of_transformers(
        "RobertaForSequenceClassification",
        FREQUENT,
        {**SMALL, "pad_token_id": 12, "vocab_size": 13, "max_position_embeddings": 24},
    ),
    _of_transformers("ViTForImageClassification", DIGITS, {**SMALL, "patch_size": 2}),
    _of_transformers(
        "ResNetForImageClassification",
        DIGITS,
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
    ),
    _of_transformers("LlamaForCausalLM", NEXT, {**SMALL, "max_position_embeddings": 16}),
    _of_transformers(
        "T5ForConditionalGeneration",
        REVERSE,
        {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2},
    ),
    _of_transformers(
        "DistilBertForSequenceClassification",
        FREQUENT,
        {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "max_position_embeddings": 16},
    ),
    _of_transformers(
        "AlbertForSequenceClassification",
        FREQUENT,
        {**SMALL, "embedding_size": 8, "max_position_embeddings": 16},
    ),
    _of_transformers("MobileNetV2ForImageClassification", DIGITS, {"depth_multiplier": 0.25}),
    _of_transformers(
        "ConvNextForImageClassification",
        DIGITS,
        {"patch_size": 2, "num_stages": 2, "hidden_sizes": [8, 16], "depths": [1, 1]},
    ),
    _of_transformers(
        "Wav2Vec2ForSequenceClassification",
        SERIES,
        {
            **SMALL,
            "num_hidden_layers": 1,
            "conv_dim": [8, 8],
            "conv_kernel": [4, 3],
            "conv_stride": [2, 2],
            "num_conv_pos_embeddings": 4,
            "num_conv_pos_embedding_groups": 2,
            "classifier_proj_size": 8,
            "mask_time_prob": 0.0,
            "layerdrop": 0.0,
        },
    ),
    _of_transformers(
        "WhisperForAudioClassification",
        SPECTRA,
        {
            "d_model": 16,
            "encoder_layers": 1,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 32,
            "num_mel_bins": 4,
            "max_source_positions": 5,
            "classifier_proj_size": 8,
        },
    ),
    _of_transformers(
        "OPTForCausalLM",
        NEXT,
        {
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "ffn_dim": 32,
            "max_position_embeddings": 16,
            "word_embed_proj_dim": 16,
        },
    ),
    _of_transformers("GPTNeoXForCausalLM", NEXT, {**SMALL, "max_position_embeddings": 16}),
    _of_transformers("MambaForCausalLM", NEXT, {"hidden_size": 16, "num_hidden_layers": 1, "state_size": 4}),
    _own("torch_encoder", FREQUENT),
    _own("torch_encoder_decoder", REVERSE),
    _own("keypoints", DIGITS),
    _of_transformers(
        "GPT2LMHeadModel",
        NEXT,
        {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16},
        gradientCheckpointing=True,
    ),
)


def spectra() -> ClassificationTask:
    """MNIST-1D cut into four bands of ten frames, as audio models take it."""
    task = load_task(Source(builtin="mnist1d"), 0)
    assert isinstance(task, ClassificationTask)
    train, validation, test = (
        {**part, "x": part["x"].reshape(-1, 4, 10)} for part in (task.train, task.validation, task.test)
    )
    return ClassificationTask(
        "spectra", train, validation, test, TaskShape(InterfaceKind.SEQUENCE, (4, 10), 10)
    )


class _Encoder(nn.Module):
    def __init__(self, vocabulary: int, outputs: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, outputs)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.encoder(self.embedding(x)).mean(1))
        return found


def torch_encoder(task: Any) -> nn.Module:
    """`torch.nn.TransformerEncoder` with an embedding and a head."""
    return _Encoder(task.shape.vocabulary, task.shape.outputs)


class _EncoderDecoder(nn.Module):
    def __init__(self, vocabulary: int, length: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, 16)
        self.position = nn.Parameter(torch.randn(length, 16) * 0.1)
        self.transformer = nn.Transformer(16, 2, 1, 1, 32, batch_first=True)
        self.head = nn.Linear(16, vocabulary, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor, decoder_input_ids: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], device=x.device)
        source, target = (self.embedding(ids) + self.position for ids in (x, decoder_input_ids))
        found: Tensor = self.head(self.transformer(source, target, tgt_mask=mask, tgt_is_causal=True))
        return found


def torch_encoder_decoder(task: Any) -> nn.Module:
    """`torch.nn.Transformer` whose head has the embedding's weight."""
    return _EncoderDecoder(task.shape.vocabulary, task.shape.example[0])


@dataclass
class _Features:
    maps: dict[str, Tensor]
    pooled: tuple[Tensor, int]


class _Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.block = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> _Features:
        low = torch.relu(self.stem(x))
        high = torch.relu(self.block(low) + low)
        return _Features({"high": high, "low": low}, (high.mean((2, 3)), 8))


class _Keypoints(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = _Backbone()
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        features = self.backbone(x)
        low = features.maps["low"].amax((2, 3))
        found: Tensor = self.head(torch.cat([features.pooled[0], low], 1))
        return found


def keypoints() -> nn.Module:
    """A backbone that returns a dataclass of dicts and tuples, as detection models do."""
    return _Keypoints()


def run_of(case: Case) -> MorphogeneticRun:
    """The manifest of a case."""
    data = {
        "apiVersion": "esper.dev/v1alpha1",
        "kind": "MorphogeneticRun",
        "metadata": {"name": "third-party"},
        "spec": {
            "host": case.host,
            "task": case.task,
            "training": {
                "steps": STEPS,
                "batchSize": 32,
                "optimizer": {"learningRate": 0.005},
                "clipNorm": 5.0,
                "validation": {"everySteps": 20},
                **case.training,
            },
            "growth": {
                "controller": {"everySteps": 5},
                "budget": {"parameters": "6x"},
                "gates": {"validationExamples": 32},
            },
            "checkpoint": {"everySteps": 30},
        },
    }
    return parse_run(data, f"the manifest of {case.name}")


def examine(case: Case, folder: Path) -> dict[str, Any]:
    """Wrap, grow, resume and export one host; the figures, and the reasons where something is refused."""
    run = run_of(case)
    figures: dict[str, Any] = {}
    _wrapping(case, run, figures)
    whole, model, task = _trained(run, folder / "whole")
    half, _, _ = _trained(run, folder / "parts", stop_at=STOP)
    rest, resumed, _ = _trained(run, folder / "parts")
    stages = [event.after for event in whole.of(SeedChanged)]
    losses = [whole.losses[step] for step in sorted(whole.losses)]
    figures["fossilized"] = stages.count(SeedStage.FOSSILIZED)
    figures["contribution"] = [e.contribution.mean for e in whole.of(SeedChanged) if e.contribution][-2:]
    figures["loss"] = [round(sum(part) / len(part), 4) for part in (losses[:10], losses[-10:])]
    joined = {**half.losses, **rest.losses}
    figures["resumed_losses_differ"] = sum(joined[step] != loss for step, loss in whole.losses.items())
    figures["resumed_weights"] = _gap(list(model.state_dict().values()), list(resumed.state_dict().values()))
    batch = {name: tensor[:16] for name, tensor in task.validation.items()}
    args, kwargs = task.inputs(batch)
    with torch.no_grad():
        reference = model.eval()(*args, **kwargs)
        figures["reloaded"] = _gap(reference, load(folder / "whole" / "model")(*args, **kwargs))
    figures["program"] = _program(folder / "whole", folder / "program", reference, args, kwargs)
    return figures


def _wrapping(case: Case, run: MorphogeneticRun, figures: dict[str, Any]) -> None:
    """Differences from the bare model: with all slots dormant in a training step, and at insertions."""
    task = load_task(run.spec.task, 0)
    host = build_host(run.spec.host, task, 0).train()
    bare = copy.deepcopy(host)
    args, kwargs = task.inputs({name: tensor[:4] for name, tensor in task.train.items()})
    model = wrap(host, {**dict(zip(_names(host), args, strict=False)), **kwargs} if kwargs else args)
    figures["slots"] = len(model.slots)
    outcomes = []
    for module in (bare, model):
        torch.manual_seed(1)
        output = module(*args, **kwargs)
        output.float().square().mean().backward()
        outcomes.append([output, *(p.grad for p in module.parameters() if p.grad is not None)])
    figures["dormant"] = _gap(*outcomes)
    figures["keys_unchanged"] = list(host.state_dict()) == list(bare.state_dict())
    host.eval()
    before, worst = model(*args, **kwargs), 0.0
    for slot, planted in list(_fitting(model))[:SLOTS_TRIED]:
        seed = f"s{model._germinated + 1}"
        _command(model, Operation.GERMINATE, slot=slot, blueprint=planted, plan=IMMEDIATE)
        worst = max(worst, _gap(before, model(*args, **kwargs)))
        _command(model, Operation.CULL, seed=seed)
    figures["insertion"] = worst


def _names(host: nn.Module) -> list[str]:
    code: Any = type(host).forward
    return list(code.__code__.co_varnames[1 : code.__code__.co_argcount])


def _fitting(model: Growable) -> list[tuple[str, str]]:
    """Each slot with a blueprint that fits it."""
    pairs = []
    for name, slot in model.slots.items():
        for identity, blueprint in model.blueprints.items():
            if misfit(blueprint, slot.place.interface) is None:
                pairs.append((name, identity))
                break
    return pairs


def _command(model: Growable, operation: Operation, **given: Any) -> None:
    model.submit(Directive(operation=operation, explanation="the benchmark says so", **given))
    assert not model.boundary(0).refused


def _trained(
    run: MorphogeneticRun, folder: Path, stop_at: int | None = None
) -> tuple[Recorder, Growable, Any]:
    recorder = Recorder(stop_at)
    script: Any = Script((5, IMMEDIATE), (10, ISOLATED))
    trainer = Trainer(run, folder, recorder, controller=script)
    recorder.trainer = trainer
    trainer.run()
    loop = trainer._loop
    assert loop is not None
    return recorder, loop.parts.model, loop.parts.task


def _program(run: Path, to: Path, reference: Any, args: Any, kwargs: Any) -> float | str:
    """Difference of the program of `torch.export` from the model, or why there is none."""
    try:
        (path,) = export_run(RunFolder(run), OutputFormat.TORCH_EXPORT, str(to)).files
    except EsperError as error:
        return f"refused: {error}"
    with torch.no_grad():
        return _gap(reference, torch.export.load(path).module()(*args, **kwargs))


def _gap(one: Any, other: Any) -> float:
    ones, others = ([t for t in tree_leaves(d) if isinstance(t, Tensor)] for d in (one, other))
    assert len(ones) == len(others)
    return max(
        (float((a - b).detach().abs().max()) for a, b in zip(ones, others, strict=True) if a.numel()),
        default=0.0,
    )


def works(figures: dict[str, Any]) -> bool:
    """Whether a host keeps every bound; one of which no program can be exported does not."""
    program = figures["program"]
    return bool(
        figures["dormant"] == 0.0
        and figures["insertion"] == 0.0
        and figures["keys_unchanged"]
        and figures["fossilized"] >= 1
        and figures["loss"][1] < figures["loss"][0]
        and figures["resumed_losses_differ"] == 0
        and figures["resumed_weights"] == 0.0
        and figures["reloaded"] <= TOLERANCE
        and not isinstance(program, str)
        and program <= TOLERANCE
    )


def _line(case: Case, examined: Callable[[Case, Path], dict[str, Any]] = examine) -> bool:
    options = " ".join(case.training)
    with tempfile.TemporaryDirectory() as folder:
        try:
            figures = examined(case, Path(folder))
            kept = works(figures)
        except EsperError as error:
            figures, kept = {"refused": str(error)}, False
    bar(
        f"third-party host: {case.name}{' ' + options if options else ''}",
        command="python -m benchmarks.third_party",
        figure="wrapped, grown, resumed, exported" if kept else "not all",
        bound="dormant, inserted 0; fossilized; loss down; resumed bit-equal; reloaded, exported <= 1e-5",
        passed=kept,
        detail=figures,
    )
    return kept


def main() -> None:
    """Examine every host (or those whose names are given) and write a line for each, and one for all."""
    torch.set_num_threads(1)
    names = sys.argv[1:]
    chosen = [case for case in CASES if not names or case.name in names]
    if not chosen:
        sys.exit(f"no host is named {', '.join(names)}; hosts: {', '.join(case.name for case in CASES)}")
    kept = sum(_line(case) for case in chosen)
    bar(
        "third-party hosts",
        command="python -m benchmarks.third_party",
        figure=kept,
        bound=">= 12 hosts, and all that are tried",
        passed=kept == len(chosen) and (kept >= 12 or bool(names)),
        detail={"tried": len(chosen)},
    )


if __name__ == "__main__":
    main()

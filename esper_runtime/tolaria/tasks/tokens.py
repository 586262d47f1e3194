"""Made-up token sequences with a rule that can be learned: next token, most frequent token, reversal."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from esper_runtime.contracts import ContractModel, InterfaceKind
from esper_runtime.tolaria.randomness import derived_seed
from esper_runtime.tolaria.tasks.protocol import Batch, TaskShape
from esper_runtime.tolaria.tasks.tensors import ClassificationTask, LanguageTask, _TensorTask, hold_out

Goal = Literal["next", "most-frequent", "reverse"]
_LIKELY = 0.9


class TokensArguments(ContractModel):
    """Arguments of `tokens`."""

    goal: Goal = Field(
        default="next",
        description="next: predict each next token; most-frequent: name the most frequent of the first "
        "`classes` tokens; reverse: write the sequence backwards (for encoder-decoder hosts).",
    )
    vocabulary: int = Field(default=16, ge=4, le=10_000, description="Number of token ids.")
    length: int = Field(default=16, ge=4, le=4096, description="Tokens in an example.")
    classes: int = Field(default=4, ge=2, le=1000, description="most-frequent only.")
    examples: int = Field(default=2000, ge=20, le=1_000_000, description="All examples together.")


@dataclass
class ReversalTask(_TensorTask):
    """Write x ``[B, T]`` backwards: y ``[B, T]``; the decoder sees what precedes each position of y."""

    metric_name: ClassVar[str] = "token accuracy"
    higher_is_better: ClassVar[bool] = True

    def inputs(self, batch: Batch) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """``x``, and ``decoder_input_ids``: y shifted by one behind the start token 0."""
        y = batch["y"]
        return (batch["x"],), {"decoder_input_ids": torch.cat([torch.zeros_like(y[:, :1]), y[:, :-1]], 1)}

    def losses(self, output: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy in nats, averaged over the positions of each example, ``[B]``."""
        losses = torch.nn.functional.cross_entropy(
            output.flatten(0, 1), batch["y"].flatten(), reduction="none"
        )
        return losses.view(batch["y"].shape).mean(-1)

    def scores(self, output: Tensor, batch: Batch) -> Tensor:
        """Share of right tokens, ``[B]``."""
        return (output.argmax(-1) == batch["y"]).to(torch.float32).mean(-1)


def tokens(args: TokensArguments, random_seed: int) -> LanguageTask | ClassificationTask | ReversalTask:
    """Sequences of token ids 1, 2, ... (0 is a start token of `reverse`); the data is always the same.

    Of ``next`` each token follows from the two before it with probability 0.9, by one random table. The
    test fifth does not depend on the seed.
    """
    generator = torch.Generator().manual_seed(derived_seed("tokens", args.vocabulary, args.length))
    shape = TaskShape(
        InterfaceKind.TOKENS,
        (args.length,),
        outputs=args.classes if args.goal == "most-frequent" else args.vocabulary,
        vocabulary=args.vocabulary,
        per_position=args.goal != "most-frequent",
    )
    if args.goal == "next":
        task: Any = LanguageTask
        batch = _next(args, generator)
    else:
        x = torch.randint(1, args.vocabulary, (args.examples, args.length), generator=generator)
        task = ReversalTask if args.goal == "reverse" else ClassificationTask
        batch = {"x": x, "y": x.flip(1) if args.goal == "reverse" else _most_frequent(x, args.classes)}
    rest, test = hold_out(batch, 0.2, 0, "task 'tokens', test")
    train, validation = hold_out(rest, 0.1, random_seed, "task 'tokens'")
    made: LanguageTask | ClassificationTask | ReversalTask = task(
        f"tokens:{args.goal}", train, validation, test, shape
    )
    return made


def _next(args: TokensArguments, generator: torch.Generator) -> Batch:
    table = torch.randint(1, args.vocabulary, (args.vocabulary, args.vocabulary), generator=generator)
    rows = torch.randint(1, args.vocabulary, (args.examples, args.length + 1), generator=generator)
    regular = torch.rand(rows.shape, generator=generator) < _LIKELY
    for place in range(2, args.length + 1):
        likely = table[rows[:, place - 2], rows[:, place - 1]]
        rows[:, place] = torch.where(regular[:, place], likely, rows[:, place])
    return {"x": rows[:, :-1].contiguous(), "y": rows[:, 1:].contiguous()}


def _most_frequent(x: Tensor, classes: int) -> Tensor:
    counts = torch.stack([(x == token + 1).sum(1) for token in range(classes)], 1)
    return counts.argmax(1)

"""Tasks: data, objective and metric of a training, built in or the user's own."""

from pathlib import Path

from esper_runtime.contracts import BUILTIN_TASKS, InputError, Source
from esper_runtime.tolaria import sources
from esper_runtime.tolaria.arguments import nearest, parse_arguments
from esper_runtime.tolaria.tasks.arrays import ArraysArguments, arrays
from esper_runtime.tolaria.tasks.builtin import SplitArguments, digits, mnist1d
from esper_runtime.tolaria.tasks.check import check_objective, check_task
from esper_runtime.tolaria.tasks.fashion import FashionArguments, fashion_mnist
from esper_runtime.tolaria.tasks.protocol import Batch, Task, TaskShape
from esper_runtime.tolaria.tasks.tensors import ClassificationTask, LanguageTask, RegressionTask
from esper_runtime.tolaria.tasks.text import TextArguments, text
from esper_runtime.tolaria.tasks.tokens import TokensArguments, tokens

__all__ = [
    "BUILTIN_TASKS",
    "Batch",
    "ClassificationTask",
    "LanguageTask",
    "RegressionTask",
    "Task",
    "TaskShape",
    "check_objective",
    "check_task",
    "load_task",
]


def load_task(source: Source, random_seed: int, directory: Path | None = None) -> Task:
    """Load and check a task.

    Args:
        source: a built-in task (one of `BUILTIN_TASKS`) or an entrypoint with args. The entrypoint's function
            also gets ``random_seed`` if it has a parameter of that name.
        random_seed: decides which training examples are held out for validation.
        directory: folder of the manifest, where relative paths and the entrypoint's module are looked for
            first.

    Raises:
        InputError: saying what is wrong, where, and what is allowed.
    """
    if source.entrypoint is not None:
        what = f"task {source.entrypoint!r}"
        task = sources.call(source.entrypoint, source.args, {"random_seed": random_seed}, directory)
        return check_task(task, what)
    what = f"task {source.builtin!r}"
    return check_task(_builtin(source, random_seed, directory, what), what)


def _builtin(source: Source, random_seed: int, directory: Path | None, what: str) -> Task:
    match source.builtin:
        case "mnist1d":
            return mnist1d(parse_arguments(SplitArguments, source.args, what), random_seed)
        case "digits":
            return digits(parse_arguments(SplitArguments, source.args, what), random_seed)
        case "fashion-mnist":
            return fashion_mnist(parse_arguments(FashionArguments, source.args, what), random_seed, directory)
        case "text":
            return text(parse_arguments(TextArguments, source.args, what), directory)
        case "tokens":
            return tokens(parse_arguments(TokensArguments, source.args, what), random_seed)
        case "arrays":
            return arrays(parse_arguments(ArraysArguments, source.args, what), random_seed, directory)
    name = str(source.builtin)
    raise InputError(
        f"there is no built-in task {name!r}{nearest(name, BUILTIN_TASKS)} (built in: "
        f"{', '.join(BUILTIN_TASKS)}; or give an entrypoint)"
    )

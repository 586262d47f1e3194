"""Built-in tasks whose data comes with a Python package: MNIST-1D and scikit-learn's digits."""

import functools
from importlib.metadata import distribution
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field

from esper_runtime.contracts import ContractModel, InterfaceKind
from esper_runtime.tolaria.randomness import seeded
from esper_runtime.tolaria.tasks.protocol import Batch, TaskShape
from esper_runtime.tolaria.tasks.tensors import ClassificationTask, hold_out, standardise

Share = Annotated[float, Field(gt=0, lt=1)]


class SplitArguments(ContractModel):
    """Arguments of `mnist1d` and `digits`."""

    validation_fraction: Share = 0.1


def mnist1d(args: SplitArguments, random_seed: int) -> ClassificationTask:
    """MNIST-1D (Greydanus and Kobak 2024): x ``[B, 1, 40]``, 10 classes, 4,000 train and 1,000 test examples.

    The package's generator already gives it mean 0 and standard deviation 1.
    """
    arrays = _mnist1d_arrays()
    train, validation = hold_out(
        _batch(arrays["x"], arrays["y"], (1, 40)), args.validation_fraction, random_seed, "task 'mnist1d'"
    )
    test = _batch(arrays["x_test"], arrays["y_test"], (1, 40))
    shape = TaskShape(InterfaceKind.SEQUENCE, (1, 40), 10)
    return ClassificationTask("mnist1d", train, validation, test, shape)


def digits(args: SplitArguments, random_seed: int) -> ClassificationTask:
    """scikit-learn's digits: x ``[B, 1, 8, 8]`` standardised, 10 classes, 1,347 train and 450 test examples.

    The test examples are always the same; only the validation examples depend on the seed.
    """
    x, y = _digits_arrays()
    rest, test = hold_out(_batch(x, y, (1, 8, 8)), 0.25, 0, "task 'digits', test")
    train, validation = hold_out(rest, args.validation_fraction, random_seed, "task 'digits'")
    train, validation, test = standardise(train, validation, test)
    return ClassificationTask(
        "digits", train, validation, test, TaskShape(InterfaceKind.IMAGE, (1, 8, 8), 10)
    )


def _batch(x: Any, y: Any, example: tuple[int, ...]) -> Batch:
    return {
        "x": torch.from_numpy(np.asarray(x, np.float32).reshape(-1, *example)),
        "y": torch.from_numpy(np.asarray(y, np.int64)),
    }


@functools.cache
def _mnist1d_arrays() -> dict[str, Any]:
    from mnist1d.data import get_dataset_args, make_dataset

    with seeded(0):  # make_dataset seeds the global generators with its own seed
        arrays: dict[str, Any] = make_dataset(get_dataset_args())
    return arrays


@functools.cache
def _digits_arrays() -> tuple[Any, Any]:
    """From the file that scikit-learn comes with: importing it would take longer than reading that."""
    file = distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
    rows = np.loadtxt(str(file), delimiter=",")
    return rows[:, :-1], rows[:, -1].astype(np.int64)

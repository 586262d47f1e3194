"""Built-in tasks on their real data."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from esper_runtime.contracts import InputError, InterfaceKind, Source
from esper_runtime.tolaria.tasks import TaskShape, load_task
from esper_runtime.tolaria.tasks.builtin import _digits_arrays
from esper_runtime.tolaria.tasks.fashion import DEBIAN_PATH

FASHION = pytest.mark.skipif(
    not Path(DEBIAN_PATH).is_dir(),
    reason=f"{DEBIAN_PATH} is missing: install the Debian package dataset-fashion-mnist",
)


def test_mnist1d_has_its_published_sizes_and_is_standardised():
    task = load_task(Source(builtin="mnist1d"), 0)
    assert task.shape == TaskShape(InterfaceKind.SEQUENCE, (1, 40), 10)
    assert task.train["x"].shape == (3600, 1, 40)
    assert len(task.validation["y"]) == 400
    assert len(task.test["y"]) == 1000
    everything = torch.cat([task.train["x"], task.validation["x"], task.test["x"]])
    assert abs(everything.mean()) < 1e-5
    assert abs(everything.std() - 1) < 1e-3
    assert task.train["y"].unique().tolist() == list(range(10))


def test_loading_mnist1d_leaves_the_global_generators_alone():
    from esper_runtime.tolaria.tasks import builtin

    builtin._mnist1d_arrays.cache_clear()
    random.seed(5)
    np.random.seed(6)
    torch.manual_seed(7)
    expected = random.random(), np.random.rand(), torch.rand(1).item()
    random.seed(5)
    np.random.seed(6)
    torch.manual_seed(7)
    load_task(Source(builtin="mnist1d"), 0)
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected


def test_the_validation_split_follows_the_seed_and_the_test_split_does_not():
    first, again, other = (load_task(Source(builtin="digits"), seed) for seed in (1, 1, 2))
    assert torch.equal(first.validation["y"], again.validation["y"])
    assert torch.equal(first.train["x"], again.train["x"])
    assert not torch.equal(first.validation["y"], other.validation["y"])
    assert torch.equal(first.test["y"], other.test["y"])


def test_training_validation_and_test_examples_are_apart():
    task = load_task(Source(builtin="mnist1d"), 3)
    rows = [{tuple(row) for row in part["x"].flatten(1).tolist()} for part in (task.train, task.validation)]
    rows.append({tuple(row) for row in task.test["x"].flatten(1).tolist()})
    assert [len(part) for part in rows] == [3600, 400, 1000]
    assert len(set.union(*rows)) == 5000


def test_the_share_of_validation_examples_can_be_set():
    task = load_task(Source(builtin="mnist1d", args={"validationFraction": 0.25}), 0)
    assert len(task.validation["y"]) == 1000


def test_digits_are_those_of_scikit_learn():
    expected = load_digits()
    x, y = _digits_arrays()
    assert np.array_equal(x, expected.data)
    assert np.array_equal(y, expected.target)


def test_digits_are_standardised_by_their_training_examples():
    task = load_task(Source(builtin="digits"), 0)
    assert task.shape == TaskShape(InterfaceKind.IMAGE, (1, 8, 8), 10)
    assert len(task.train["y"]) + len(task.validation["y"]) == 1348
    assert len(task.test["y"]) == 449
    assert abs(task.train["x"].mean()) < 1e-5
    assert abs(task.train["x"].std() - 1) < 1e-3


def test_accuracy_and_cross_entropy_are_per_example():
    task = load_task(Source(builtin="digits"), 0)
    batch = {name: tensor[:4] for name, tensor in task.test.items()}
    logits = torch.zeros(4, 10, dtype=torch.float64)
    logits[torch.arange(4), batch["y"]] = torch.tensor([9.0, 9.0, -9.0, -9.0]).double()
    assert task.scores(logits, batch).tolist() == [1, 1, 0, 0]
    expected = [torch.logsumexp(row, 0) - row[label] for row, label in zip(logits, batch["y"], strict=True)]
    assert torch.allclose(task.losses(logits, batch), torch.stack(expected))


@FASHION
def test_fashion_mnist_is_read_from_its_idx_files():
    task = load_task(Source(builtin="fashion-mnist", args={"trainExamples": 2000}), 0)
    assert task.shape == TaskShape(InterfaceKind.IMAGE, (1, 28, 28), 10)
    assert len(task.train["y"]) == 1800
    assert len(task.validation["y"]) == 200
    assert len(task.test["y"]) == 10000
    assert abs(task.train["x"].mean()) < 1e-4
    assert task.test["y"].bincount().tolist() == [1000] * 10
    other = load_task(Source(builtin="fashion-mnist", args={"trainExamples": 2000}), 1)
    assert not torch.equal(task.train["x"], other.train["x"])


def _idx(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim])
    return header + b"".join(size.to_bytes(4, "big") for size in array.shape) + array.tobytes()


def _write_fashion(folder: Path) -> None:
    generator = np.random.default_rng(0)
    for part, count in (("train", 60), ("t10k", 20)):
        images = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = generator.integers(0, 10, count, dtype=np.uint8)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(_idx(images))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(_idx(labels))


def test_plain_idx_files_in_a_folder_beside_the_manifest_are_found(tmp_path):
    (tmp_path / "data").mkdir()
    _write_fashion(tmp_path / "data")
    task = load_task(Source(builtin="fashion-mnist", args={"path": "data"}), 0, tmp_path)
    assert len(task.train["y"]) == 54
    assert len(task.test["y"]) == 20


def test_damaged_or_missing_idx_files_are_refused_with_what_to_install(tmp_path):
    source = Source(builtin="fashion-mnist", args={"path": str(tmp_path)})
    with pytest.raises(InputError, match=r"train-images-idx3-ubyte\.gz is in .*dataset-fashion-mnist"):
        load_task(source, 0)
    _write_fashion(tmp_path)
    images = tmp_path / "train-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:-1])
    with pytest.raises(InputError, match="is damaged: its header says"):
        load_task(source, 0)
    (tmp_path / "images").mkdir()
    images.unlink()
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(b"not gzip at all")
    with pytest.raises(InputError, match="cannot be read"):
        load_task(source, 0)
    with pytest.raises(InputError, match=r"there is no /nowhere; install the Debian package"):
        load_task(Source(builtin="fashion-mnist", args={"path": "/nowhere"}), 0)


TEXT = "".join(f"{n} bottles of beer on the wall, {n} bottles of beer.\n" for n in range(300))


def _text(folder: Path, **args: object):
    (folder / "song.txt").write_text(TEXT, encoding="utf-8")
    return load_task(Source(builtin="text", args={"path": "song.txt", "context": 16, **args}), 0, folder)


def test_a_text_becomes_windows_whose_targets_lie_one_character_later(tmp_path):
    task = _text(tmp_path)
    vocabulary = sorted(set(TEXT))
    assert task.shape == TaskShape(
        InterfaceKind.TOKENS, (16,), len(vocabulary), vocabulary=len(vocabulary), per_position=True
    )

    def decode(rows: torch.Tensor) -> str:
        return "".join(vocabulary[code] for code in rows.flatten().tolist())

    read = decode(task.train["x"])
    assert TEXT.startswith(read)
    assert TEXT[1:].startswith(decode(task.train["y"]))
    assert len(read) > 0.79 * len(TEXT)


def test_the_parts_of_a_text_follow_each_other(tmp_path):
    task = _text(tmp_path, validationFraction=0.2, testFraction=0.3)
    vocabulary = sorted(set(TEXT))
    starts = []
    for part in (task.train, task.validation, task.test):
        starts.append(TEXT.index("".join(vocabulary[code] for code in part["x"][:3].flatten().tolist())))
    assert starts == [
        0,
        len(TEXT) - int(0.2 * len(TEXT)) - int(0.3 * len(TEXT)),
        len(TEXT) - int(0.3 * len(TEXT)),
    ]


def test_the_score_of_a_uniform_guess_is_log2_of_the_vocabulary_in_bits(tmp_path):
    task = _text(tmp_path)
    batch = {name: tensor[:3] for name, tensor in task.test.items()}
    output = torch.zeros(3, 16, task.shape.outputs)
    assert torch.allclose(task.scores(output, batch), torch.full((3,), np.log2(task.shape.outputs)))
    assert torch.allclose(task.losses(output, batch), torch.full((3,), np.log(task.shape.outputs)))


def test_the_loss_of_a_text_is_the_mean_over_positions(tmp_path):
    task = _text(tmp_path)
    batch = {name: tensor[:1] for name, tensor in task.test.items()}
    output = torch.zeros(1, 16, task.shape.outputs)
    output[0, 0, batch["y"][0, 0]] = 100.0  # one of 16 positions is certain
    assert torch.allclose(
        task.losses(output, batch), torch.tensor([np.log(task.shape.outputs) * 15 / 16]).float()
    )


def test_unusable_texts_are_refused(tmp_path):
    with pytest.raises(InputError, match="smallest part has 1598, but one example needs 5001"):
        _text(tmp_path, context=5000)
    with pytest.raises(InputError, match="the smallest part has 0"):
        _text(tmp_path, validationFraction=0.5, testFraction=0.5)
    (tmp_path / "binary").write_bytes(b"abc\xff\xfe")
    with pytest.raises(InputError, match=r"is not UTF-8 text \(byte 3"):
        load_task(Source(builtin="text", args={"path": "binary"}), 0, tmp_path)
    with pytest.raises(InputError, match="cannot be read"):
        load_task(Source(builtin="text", args={"path": "."}), 0, tmp_path)
    with pytest.raises(InputError, match=r"args.path: there is no .*absent.txt and .*absent.txt"):
        load_task(Source(builtin="text", args={"path": "absent.txt"}), 0, tmp_path)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Source(builtin="mnist2d"), "no built-in task 'mnist2d'; did you mean 'mnist1d'?"),
        (
            Source(builtin="mnist1d", args={"validationFracton": 0.1}),
            "args.validationFracton: unknown argument; did you mean 'validationFraction'?",
        ),
        (
            Source(builtin="digits", args={"validationFraction": 1.5}),
            "args.validationFraction: Input should be less than 1, got 1.5",
        ),
        (Source(builtin="text"), "task 'text': args.path: this argument is needed"),
        (
            Source(builtin="digits", args={"validationFraction": 0.0001}),
            "1348 examples and a share of 0.0001 leave 0 on one side",
        ),
        (
            Source(builtin="fashion-mnist", args={"trainExamples": "many"}),
            "args.trainExamples: Input should be a valid integer",
        ),
    ],
)
def test_wrong_arguments_are_named_with_what_is_allowed(source, message):
    with pytest.raises(InputError) as caught:
        load_task(source, 0)
    assert message in str(caught.value)

"""What people do by mistake: it is refused with the reason, before anything is lost."""

import copy
import json

import pytest
import torch
from torch import nn

from esper_runtime.contracts import (
    CheckpointError,
    HostError,
    InputError,
    JournalError,
    RunFailedError,
)
from esper_runtime.kasmina import graphless, wrap
from esper_runtime.nissa import read_journal
from esper_runtime.nissa.history import read_history
from esper_runtime.tolaria import Grower, Trainer, load
from esper_runtime.tolaria.hosts import check_host, check_smallest_batch
from esper_runtime.tolaria.sources import raised_in_user_code
from tests.tolaria.runs import IMMEDIATE, Recorder, Script, digits, manifest, train


def test_a_changed_architecture_is_refused(tmp_path):
    train(manifest(40), tmp_path, Script((10, IMMEDIATE)))
    path = tmp_path / "model" / "architecture.json"
    assert load(path.parent) is not None
    architecture = json.loads(path.read_text())
    architecture["randomSeed"] = 1
    path.write_text(json.dumps(architecture))
    with pytest.raises(CheckpointError, match="was changed after it was written"):
        load(path.parent)


@pytest.mark.parametrize("text", ["[]", "{}", "no json"])
def test_an_architecture_that_is_none_is_refused(tmp_path, text):
    (tmp_path / "architecture.json").write_text(text)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError):
        load(tmp_path)


def test_a_place_for_the_model_that_cannot_be_opened_is_refused_before_training(tmp_path):
    with pytest.raises(InputError, match=r"spec\.output\.uri 'foo://x'"):
        train(manifest(5, output={"uri": "foo://x"}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("part", ["checkpoint", "output"])
def test_a_place_that_is_lost_with_the_process_is_refused(tmp_path, part):
    with pytest.raises(InputError, match=rf"spec.{part}.uri: memory://x is memory of this process"):
        train(manifest(20, **{part: {"uri": "memory://x"}}), tmp_path / "run", Script())
    assert not (tmp_path / "run").exists()


def test_two_runs_cannot_share_a_place_for_checkpoints(tmp_path):
    place = {"uri": str(tmp_path / "shared"), "everySteps": 5}
    train(manifest(20, checkpoint=place), tmp_path / "a", stop_at=12)
    before = sorted(path.name for path in (tmp_path / "shared").iterdir())
    with pytest.raises(InputError, match="belong to another run"):
        train(manifest(20, name="other", checkpoint=place), tmp_path / "b")
    assert sorted(path.name for path in (tmp_path / "shared").iterdir()) == before


def test_a_run_whose_folder_is_moved_meanwhile_stops_and_says_so(tmp_path):
    class Moving(Recorder):
        def on_step(self, step, loss):
            if step == 7:
                (tmp_path / "run").rename(tmp_path / "elsewhere")

    with pytest.raises(JournalError, match="removed or moved"):
        Trainer(manifest(60), tmp_path / "run", Moving()).run()
    assert read_journal(tmp_path / "elsewhere" / "journal.jsonl")[-1].step <= 7


def test_a_run_killed_while_its_first_entry_was_written_is_resumed_and_can_be_told(tmp_path):
    (tmp_path / "journal.jsonl").write_bytes(b'{"sequence":0,"ti')
    train(manifest(5), tmp_path)
    history = read_history(read_journal(tmp_path / "journal.jsonl"))
    assert history.started.total_steps == 5
    assert history.finished is not None


@pytest.mark.parametrize(
    ("growth", "message"),
    [
        ({"blueprints": {"include": ["nothing*"]}}, "no blueprint matches"),
        ({"budget": {"parameters": 10}}, r"budget\.parameters allows 10"),
        ({"budget": {"macsPerExample": "0.5x"}}, r"budget\.macsPerExample allows"),
    ],
)
def test_growth_that_could_never_happen_is_refused(tmp_path, growth, message):
    with pytest.raises(InputError, match=message):
        train(manifest(5, growth=growth), tmp_path / "run")


class InPlace(nn.Sequential):
    """Subtracts the mean from its input itself."""

    def forward(self, x):
        x -= x.mean()
        return super().forward(x)


def test_a_host_that_changes_its_inputs_is_refused_and_the_data_stays_as_it_is():
    task = digits()
    before = task.train["x"].clone()
    with pytest.raises(HostError, match="changes 'x' of its batch in place"):
        check_host(InPlace(nn.Flatten(), nn.Linear(64, 10)), task)
    assert torch.equal(task.train["x"], before)


def test_batch_norm_on_micro_batches_of_one_example_is_refused():
    host = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.BatchNorm1d(6), nn.Linear(6, 10))
    check_smallest_batch(host, digits(), 2, "host")
    with pytest.raises(InputError, match="micro-batches of 1"):
        check_smallest_batch(host, digits(), 1, "host")


def test_an_error_of_the_users_code_is_told_from_one_of_ours(tmp_path):
    path = tmp_path / "mine.py"
    names: dict = {}
    exec(compile("def boom(x):\n    return x.no_such_name\n", str(path), "exec"), names)
    with pytest.raises(AttributeError) as caught:
        names["boom"](torch.zeros(1))
    assert raised_in_user_code(caught.value) == f"{path}:2 in boom"
    with pytest.raises(TypeError) as caught:
        digits().inputs(None)
    assert raised_in_user_code(caught.value) is None


class Remembering(nn.Sequential):
    """Keeps an activation with its graph, as hosts do for a later loss or for plots."""

    def forward(self, x):
        self.last = {"hidden": self[0](x)}
        return self[1](self.last["hidden"])


def test_a_host_that_keeps_activations_can_be_copied():
    host = Remembering(nn.Linear(4, 3), nn.Linear(3, 2))
    host(torch.ones(1, 4))
    copied = copy.deepcopy(host, graphless(host))
    assert torch.equal(copied.last["hidden"], host.last["hidden"])
    assert copied[0].weight is not host[0].weight


def own(**changes):
    """A grower for a small net, with arguments changed."""
    torch.manual_seed(0)
    x = torch.randn(64, 8)
    net = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
    arguments = {
        "model": wrap(net, x[:2]),
        "optimizer": torch.optim.SGD(net.parameters(), lr=0.1),
        "losses": nn.CrossEntropyLoss(reduction="none"),
        "validation": (x, (x.sum(1) > 0).long()),
        "total_steps": 40,
        **changes,
    }
    return Grower(**arguments), net, x, (x.sum(1) > 0).long()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": nn.Linear(8, 2)}, r"needs a model from wrap"),
        ({"total_steps": 0}, "total_steps is 0"),
        ({"validation": [(torch.ones(2, 8), torch.ones(2))]}, "give a tuple"),
        ({"validation": (torch.ones(0, 8), torch.ones(0))}, "hold no examples"),
        ({"optimizer": torch.optim.LBFGS([nn.Parameter(torch.ones(1))])}, "LBFGS"),
    ],
)
def test_wrong_arguments_of_a_grower_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        own(**changes)


def test_a_mean_loss_is_refused_where_one_for_each_example_is_needed():
    grower, _, x, y = own(losses=nn.CrossEntropyLoss())
    with pytest.raises(InputError, match="loss of each example"):
        grower.step(x, y)


def test_a_validation_loss_that_is_not_finite_ends_the_growth_with_the_step():
    grower, net, x, y = own()
    with torch.no_grad():
        net[0].weight.fill_(torch.nan)
    with pytest.raises(RunFailedError, match="after step 1 the validation loss is nan"):
        grower.step(x, y)


def test_gradients_dropped_too_early_are_noticed():
    grower, _, x, y = own(controller=Script((2, IMMEDIATE)))
    losses = nn.CrossEntropyLoss(reduction="none")

    def steps():
        for _ in range(6):
            losses(grower.model(x), y).mean().backward()
            grower.model.zero_grad()
            grower.step(x, y)

    with pytest.raises(InputError, match="neither the host nor its seeds have gradients"):
        steps()


def test_what_is_no_module_or_wrapped_already_is_not_wrapped():
    with pytest.raises(HostError, match=r"expected a torch\.nn\.Module"):
        wrap(lambda x: x, torch.ones(1, 4))
    model = wrap(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), torch.ones(1, 4))
    with pytest.raises(HostError, match="wrapped already"):
        wrap(model, torch.ones(1, 4))


class Unordered(nn.Module):
    """A host that writes by an operation whose order of writes is open."""

    def __init__(self):
        super().__init__()
        self.flat = nn.Flatten()
        self.one, self.two = nn.Linear(64, 8), nn.Linear(8, 10)

    def forward(self, x):
        h = torch.relu(self.one(self.flat(x)))
        torch.zeros(3).put_(torch.tensor([1]), torch.tensor([1.0]))
        return self.two(h)


def test_an_operation_that_cannot_be_repeated_is_named_with_what_to_do(tmp_path):
    with pytest.raises(InputError, match=r"put_ does not have a deterministic.*spec.training.deterministic"):
        Trainer(manifest(4), tmp_path / "run", host=Unordered()).run()
    assert (
        Trainer(manifest(4, training={"deterministic": False}), tmp_path / "free", host=Unordered())
        .run()
        .outcome
        == "Complete"
    )

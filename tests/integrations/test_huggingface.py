"""Hugging Face's own Trainer, wrapped: the same run, of which most steps are skipped."""

import pytest
import torch
from torch import nn

import jumpstart as js
from jumpstart.errors import InputError

pytestmark = pytest.mark.integrations
transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from jumpstart.integrations.huggingface import add_jumps  # noqa: E402
from jumpstart.integrations.told import inside  # noqa: E402

STEPS = 120


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 3))

    def forward(self, x, labels=None):
        u = self.body(x)
        return {"logits": u} if labels is None else {"loss": nn.functional.cross_entropy(u, labels), "logits": u}


def data():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(1000, 4, generator=g)
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()


def trainer(folder, steps=STEPS, batch=1000, optim="sgd", rate=0.1, **settings):
    torch.manual_seed(0)
    x, y = data()
    settings = transformers.TrainingArguments(
        str(folder), max_steps=steps, per_device_train_batch_size=batch, learning_rate=rate, optim=optim, use_cpu=True,
        report_to=[], disable_tqdm=True, logging_strategy="no", **{"save_strategy": "no", **settings},
    )  # fmt: skip
    samples = [{"x": a, "labels": b} for a, b in zip(x, y, strict=True)]
    return transformers.Trainer(Net(), settings, train_dataset=samples)


def objective(made):
    return js.supervised(made.model.body, *data(), loss="cross_entropy")


def outputs(made):
    with torch.no_grad():
        return made.model.body(data()[0])


def test_the_run_ends_where_the_bare_one_ends_in_a_few_steps(tmp_path):
    bare, made = trainer(tmp_path), trainer(tmp_path)
    start = outputs(bare)
    bare.train()
    add_jumps(made, objective(made), skip=20)
    made.train()
    jumps = inside(made.optimizer)
    assert jumps.effective_steps == STEPS
    assert made.state.global_step == jumps.taken <= STEPS / 3
    assert jumps.action.options["clip"] == 1.0, "the trainer's own max_grad_norm"
    assert made.lr_scheduler.get_last_lr() == bare.lr_scheduler.get_last_lr(), "the schedule has gone on with it"
    end = outputs(bare)
    assert torch.linalg.vector_norm(outputs(made) - end) < 0.03 * torch.linalg.vector_norm(end - start)


def test_a_run_without_jumps_is_the_trainers_own_to_the_bit(tmp_path):
    bare, made = trainer(tmp_path, 20, batch=100), trainer(tmp_path, 20, batch=100)
    bare.train()
    add_jumps(made, objective(made), at=())
    made.train()
    assert inside(made.optimizer).jumps == 0
    assert torch.equal(outputs(made), outputs(bare))


def test_a_resumed_run_goes_on_to_the_bit(tmp_path):
    whole = trainer(tmp_path / "whole", save_strategy="steps", save_steps=7)
    add_jumps(whole, objective(whole), skip=10)
    whole.train()
    assert inside(whole.optimizer).skipped > 20
    again = trainer(tmp_path / "again")
    add_jumps(again, objective(again), skip=10)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-7"))
    one, other = inside(whole.optimizer), inside(again.optimizer)
    assert (other.taken, other.skipped) == (one.taken, one.skipped)
    assert other.effective_steps == STEPS
    assert torch.equal(outputs(again), outputs(whole))


def test_the_end_is_saved_as_the_trainer_saves_it(tmp_path):
    made = trainer(tmp_path, save_strategy="steps", save_steps=1000)
    add_jumps(made, objective(made), skip=20)
    made.train()
    assert (tmp_path / f"checkpoint-{made.state.global_step}").is_dir()


def test_a_second_training_counts_from_its_own_beginning(tmp_path):
    made = trainer(tmp_path, steps=30)
    add_jumps(made, objective(made), skip=5)
    made.train()
    made.train()
    assert inside(made.optimizer).effective_steps == 60


def test_a_search_goes_the_same_way(tmp_path):
    made = trainer(tmp_path, steps=12, optim="adamw_torch", rate=1e-2)
    add_jumps(made, objective(made), at={6}, search=True)
    made.train()
    assert (made.state.global_step, inside(made.optimizer).jumps) == (12, 1)


def test_misuse_is_quoted(tmp_path):
    made = trainer(tmp_path)
    with pytest.raises(InputError, match=r"transformers\.Trainer, got Net"):
        add_jumps(Net(), lambda: None)
    with pytest.raises(InputError, match="objective must be"):
        add_jumps(made, 3)
    add_jumps(made, objective(made))
    with pytest.raises(InputError, match="already"):
        add_jumps(made, objective(made))

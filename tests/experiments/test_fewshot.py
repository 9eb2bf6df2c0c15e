"""Few shots at toy size: what is trained, what is counted, and where texts come from."""

from __future__ import annotations

import copy
import math
import warnings
from importlib import import_module

import pytest
import torch
import torch.nn.functional as F

from experiments import texts
from experiments.fewshot import contenders, summary
from experiments.fewshot.contenders import LOGISTIC
from experiments.fewshot.encoder import toy
from experiments.fewshot.tasks import Toy, drawn
from experiments.texts import Texts
from jumpstart.errors import JumpstartError

run = import_module("experiments.fewshot.__main__")


def samples(shots=8):
    few, test = drawn(*run.toy_texts(), shots, 0)
    toys = Toy()
    return toys.states(few), few.labels, toys.states(test), test.labels


def test_the_network_is_masked():
    """What stands where no token is changes nothing."""
    model = toy(3, 0)
    x = samples()[0][:4]
    longer = torch.cat([x, torch.randn(4, 2, 17)], 1)
    longer[:, 4:, -1] = 0
    assert torch.allclose(model(longer), model(x), atol=1e-5)
    assert model.features(x).square().mean().item() == pytest.approx(1.0, rel=1e-5)


def test_the_second_stage_is_the_head_where_nothing_else_is_trusted(monkeypatch):
    x, y, *_ = samples()
    monkeypatch.setattr(contenders, "HORIZONS", [0.0, 1e4])  # further than the network follows
    start = toy(3, 0)
    head = contenders.head(copy.deepcopy(start), x, y)
    found = contenders.two_stages(copy.deepcopy(start), x, y)
    assert found.told["horizon"] == 0.0 and found.told["promised"] == found.told["of the head"]
    assert torch.allclose(found.model(x), head.model(x), atol=1e-6)


def test_a_promise_that_has_seen_its_samples_is_lower():
    x, y, *_ = samples()
    found = contenders.two_stages(toy(3, 0), x, y)
    assert found.later()["not carried"] < 0.7 * found.told["promised"]


def test_two_classes_of_a_logistic_head_are_as_sure_as_scikit_learns():
    from sklearn.linear_model import LogisticRegressionCV

    x, y, *_ = samples()
    x, y = x[y < 2], y[y < 2]
    model = contenders.logistic(toy(2, 0), x, y).model
    with torch.no_grad():
        features, found = model.features(x).double().numpy(), model(x).softmax(1)
    chooser = LogisticRegressionCV(Cs=10, cv=5, max_iter=2000, scoring="neg_log_loss")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        truth = chooser.fit(features, y.numpy())
    assert torch.allclose(found.double(), torch.tensor(truth.predict_proba(features)), atol=1e-4)


def test_training_keeps_the_rate_and_steps_that_its_held_out_quarter_likes():
    x, y, *_ = samples()
    found = contenders.tuned(toy(3, 0), x, y, (1e-9, 1e-2), None)
    assert found.told["rate"] == 1e-2 and found.told["promised"] < math.log(3)
    with torch.no_grad():
        assert float(F.cross_entropy(found.model(x), y)) < found.told["promised"]


def test_everybody_is_measured_on_what_nobody_has_seen(monkeypatch):
    monkeypatch.setattr(contenders, "STEPS", (3, 6))
    rows = run.measure(Toy(), "toy", run.toy_texts(), 8, 0)
    assert [row["contender"] for row in rows] == list(contenders.CONTENDERS)
    assert all(0 <= row["accuracy"] <= 1 and row["seconds"] > 0 for row in rows)
    lines = {line["contender"]: line for line in summary.summary(rows)}
    assert lines[LOGISTIC]["against"] == 0 and lines[LOGISTIC]["promised"] is None


def test_differences_are_paired_and_counted():
    def row(seed, name, accuracy):
        return {
            "task": "a", "shots": 8, "seed": seed, "contender": name, "accuracy": accuracy, "loss": 1.0, "seconds": 1.0,
            "horizon": float(seed),
        }  # fmt: skip

    rows = [row(s, LOGISTIC, 0.5) for s in range(3)]
    rows += [row(s, name, 0.5 + d) for name in contenders.CONTENDERS if name != LOGISTIC
             for s, d in enumerate((-0.02, 0.0, 0.05))]  # fmt: skip
    line = next(line for line in summary.summary(rows) if line["contender"] == "head")
    assert (line["below"], line["above"]) == (1, 1) and line["against"] == pytest.approx(0.01)
    said = summary.goals(rows)[1]["says"]
    assert "+1.00 ± 2.08 points" in said and "worst -2.0, best +5.0" in said and said.endswith("was taken in 2.")
    content = {
        "command": "x", "rows": rows, "settings": {"summary": summary.summary(rows), "goals": summary.goals(rows)},
        "environment": {"commit": "c", "machine": "m", "torch": "t", "seeds": [0]},
    }  # fmt: skip
    assert "points of accuracy against the logistic head" in summary.section(content)


def test_few_are_drawn_of_each_class_and_numbered_anew():
    found = texts.few(Texts(["a", "b", "c", "d", "e"], torch.tensor([0, 2, 2, 0, 1])), 2, [2, 0], 0)
    assert sorted(found.texts[:2]) == ["b", "c"] and found.labels.tolist() == [0, 0, 1, 1]
    with pytest.raises(JumpstartError, match="class 1 has 1 texts, 2 are asked"):
        texts.few(Texts(["a"], torch.tensor([1])), 2, [1], 0)


def test_texts_are_read_from_the_data_folder_and_else_one_is_told_what_to_set_up(tmp_path, monkeypatch):
    (tmp_path / "text").mkdir()
    for part in ("train", "test"):
        (tmp_path / "text" / f"sst2_{part}.tsv").write_text(f"good\tfilm of {part}\t1\nbad\t0\n")
    monkeypatch.setenv("JUMPSTART_DATA", str(tmp_path))
    assert texts.sst2()[1].texts == ["good\tfilm of test", "bad"] and texts.sst2()[0].labels.tolist() == [1, 0]
    with pytest.raises(JumpstartError, match=r"gsm8k_preferences.*JUMPSTART_DATA.*no public address"):
        texts.preferences()
    monkeypatch.setitem(texts.SOURCES, "clinc150.json", (tmp_path / "none.json").as_uri())
    with pytest.raises(JumpstartError, match=r"text/clinc150.json, or let it be downloaded from file:.*none\.json"):
        texts.clinc150()

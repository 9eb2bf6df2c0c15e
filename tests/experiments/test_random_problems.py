"""Random problems follow from their numbers, runs can be cloned, and a stopped experiment goes on from its ledger."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch

from experiments.random_problems import ledger, networks, problems, tables
from experiments.random_problems.ledger import Ledger, Options, rounded, sources, work
from experiments.random_problems.problems import LOSSES, NETWORKS, OPTIMIZERS, REPORTING, TUNING, data, problem
from experiments.random_problems.runs import Losses, Run, bare


def some(**changes):
    return dataclasses.replace(problem(3), samples=12, batch=12, **changes)


def weights(run):
    return torch.cat([p.detach().reshape(-1) for p in run.model.parameters()])


def test_choices_and_results_share_no_problem():
    assert set(TUNING).isdisjoint(REPORTING[:1000]) and TUNING[-1] < REPORTING[0]
    with pytest.raises(ValueError, match=r"problem 500000: .*range\(0, 100000\).*range\(1000000,"):
        problem(500_000)


def test_a_number_is_a_problem():
    first, again, other = data(problem(1_000_007)), data(problem(1_000_007)), data(problem(1_000_008))
    assert problem(1_000_007) == problem(1_000_007) != problem(1_000_008)
    assert torch.equal(first.x, again.x) and torch.equal(first.held_y, again.held_y)
    assert first.x.shape != other.x.shape or not torch.equal(first.x, other.x)
    assert len(first.held_x) == len(first.held_y) == problems.HELD_OUT


def test_every_kind_is_drawn():
    drawn = [problem(number) for number in range(400)]
    for key, known in (("network", NETWORKS), ("loss", LOSSES), ("optimizer", OPTIMIZERS)):
        assert {getattr(of, key) for of in drawn} == set(known)
    assert {of.dtype for of in drawn} == {"float32", "float64"}
    assert 0.4 < sum(of.full for of in drawn) / 400 < 0.6
    assert all(4 <= of.batch <= of.samples and 8 <= of.samples <= 200 for of in drawn)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("loss", LOSSES)
def test_every_network_trains_under_every_loss(network, loss):
    outputs = {"mse": 3, "logistic": 1, "cross_entropy": 5}[loss]
    run = Run.start(some(network=network, loss=loss, outputs=outputs, optimizer="Adam", rate=3e-3, dtype="float64"))
    before = run.losses()
    assert math.isfinite(before.held) and run.held_out().shape == (problems.HELD_OUT, outputs)
    for _ in range(15):
        run.step()
    assert run.losses().train < before.train


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_clone_goes_on_as_the_run_does_to_the_bit(optimizer):
    of = some(optimizer=optimizer, rate=OPTIMIZERS[optimizer].rates[0], decay=1e-2)
    run = Run.start(dataclasses.replace(of, batch=4))
    for _ in range(4):
        run.step()
    twin, stranger = run.clone(), run.clone(order=5)
    for one in (twin, run, stranger):
        for _ in range(5):
            one.step()
    assert torch.equal(weights(run), weights(twin))
    assert not torch.equal(weights(run), weights(stranger))


def test_replicas_have_other_weights_and_orders_only_other_minibatches():
    of = dataclasses.replace(some(), batch=4)
    first, order, replica = Run.start(of), Run.start(of, order=1), Run.start(of, 1)
    assert torch.equal(weights(first), weights(order)) and not torch.equal(weights(first), weights(replica))
    assert not torch.equal(next(first.batches), next(order.batches))
    state = torch.get_rng_state()
    Run.start(of, 2)
    assert torch.equal(state, torch.get_rng_state())


def test_minibatches_are_a_permutation_of_all_samples():
    run = Run.start(dataclasses.replace(some(), batch=4))
    for _ in range(2):
        assert sorted(torch.cat([next(run.batches) for _ in range(3)]).tolist()) == list(range(12))
    assert next(Run.start(some()).batches) is None


def test_what_a_bare_run_costs_is_counted_by_the_network():
    found = bare(dataclasses.replace(some(), batch=4), 6)
    assert (found.passes, found.evaluations, found.taken, found.effective) == (6, 6, 6, 6)
    before = networks.Tally.samples
    run = Run.start(some())
    run.losses()
    assert networks.Tally.samples == before  # looking costs nothing


def test_vanishing_losses_make_no_ratios():
    start, e = Losses(1.0, 1.0), math.e
    assert Losses(e, 1.0).above(Losses(1.0, e), start) == pytest.approx((1, -1))
    assert Losses(1e-9, 1e-3).above(Losses(1e-20, 1e-3), start) == (0, 0)
    assert Losses(math.nan, 1.0).above(Losses(1.0, math.nan), start)[0] == math.inf
    assert math.isnan(Losses(1.0, 1.0).above(Losses(1.0, math.nan), start)[1])


def options(folder, minutes=math.inf):
    return Options(True, 3, 1, minutes, True, folder, False)


def test_a_stopped_run_goes_on(tmp_path):
    done = []

    def jobs():
        for name in "abc":
            yield name, lambda name=name: done.append(name) or {"name": name, "value": 1 / 3}

    assert work(Ledger(tmp_path, "x"), list(jobs())[:2], options(tmp_path)) == [
        {"name": "a", "value": 0.3333}, {"name": "b", "value": 0.3333},
    ]  # fmt: skip
    path = tmp_path / "rows.jsonl"
    path.write_text(path.read_text()[:-9])  # killed while it wrote of b
    assert [row["name"] for row in work(Ledger(tmp_path, "x"), jobs(), options(tmp_path))] == ["a", "b", "c"]
    assert done == ["a", "b", "b", "c"]
    assert work(Ledger(tmp_path, "x"), jobs(), options(tmp_path, minutes=-1))[2]["name"] == "c"
    assert work(Ledger(tmp_path / "new", "x"), jobs(), options(tmp_path, minutes=-1)) == []
    assert done == ["a", "b", "b", "c"]


def test_rows_of_other_sources_are_left_out(tmp_path):
    Ledger(tmp_path, "old").add("a", {"value": math.inf})
    book = Ledger(tmp_path, "new")
    assert "a" not in book and book.others == 1
    book.add("a", {"value": 2.0})
    assert Ledger(tmp_path, "new").rows == {"a": {"value": 2.0}}
    assert Ledger(tmp_path, "old").rows == {"a": {"value": math.inf}}
    assert sources() == sources() != sources(tables)


def test_a_digest_is_of_names_and_text_and_knows_no_order(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger, "ROOT", tmp_path.resolve())
    a, b = tmp_path / "a.py", tmp_path / "b.py"
    a.write_text("x = 1")
    b.write_text("y = 2")
    first = ledger.digest(a, b)
    assert first == ledger.digest(b, a) != ledger.digest(a)
    b.rename(tmp_path / "c.py")
    assert ledger.digest(a, tmp_path / "c.py") != first
    a.write_text("x = 2")
    (tmp_path / "c.py").rename(b)
    assert ledger.digest(a, b) != first
    assert ledger.digest(a, b) == ledger.digest(SimpleNamespace(__file__=str(a)), b)


def test_numbers_are_kept_with_four_digits():
    assert rounded({"a": [1.23456789, 12345678], "b": math.inf, "c": (True, None, "x")}) == {
        "a": [1.235, 12345678], "b": math.inf, "c": [True, None, "x"],
    }  # fmt: skip


def test_quantiles_are_numpys_and_hold_infinities():
    assert tables.median([3.0, 1.0, math.nan, 2.0, 4.0]) == 2.5
    assert tables.median([3.0, 1.0, 2.0, 4.0], 0.9) == pytest.approx(3.7)
    assert tables.median([1.0, math.inf, math.inf]) == tables.median([1.0, math.inf]) == math.inf
    assert tables.median([1.0, 2.0, math.inf]) == 2.0
    assert tables.median([math.nan]) is None

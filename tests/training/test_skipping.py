"""The wrapper that skips: it follows a loop where it can tell that it does, says where not, and never goes too far."""

from __future__ import annotations

import copy
import io
import pickle
import re
import warnings

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import jumpstart as js
from jumpstart.errors import InputError, NondeterministicError
from jumpstart.training.pace import OVERDRAFT
from jumpstart.training.skipping import BUDGET

from ..skipping.loops import Counting
from ..skipping.optimizers import BY_HAND, KINDS

X = torch.randn(60, 4, generator=torch.Generator().manual_seed(9)).double()
Y = torch.sin(2 * X[:, :1]) + 0.1 * X[:, 1:2]
HELD = torch.randn(40, 4, generator=torch.Generator().manual_seed(10)).double()
LOSS = nn.functional.mse_loss
MAKES = {
    "SGD": lambda p: torch.optim.SGD(p, 0.02),
    "momentum": lambda p: torch.optim.SGD(p, 0.02, momentum=0.9),
    "AdamW": lambda p: torch.optim.AdamW(p, 0.002),
}


def net(*layers, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 16), *layers, nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1)).double()


def wrapped(model=None, make="momentum", objective=None, **options):
    model = net() if model is None else model
    inner = (MAKES[make] if isinstance(make, str) else make)([p for p in model.parameters() if p.requires_grad])
    return model, js.JumpOptimizer(inner, js.supervised(model, X, Y) if objective is None else objective, **options)


def step(model, optimizer, rows=slice(None), scale=1.0, clip=None, scheduler=None):
    optimizer.zero_grad()
    (scale * LOSS(model(X[rows]), Y[rows])).backward()
    if clip is not None:
        nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    if scheduler is not None:
        scheduler.step()


def run(model, optimizer, total=60, **options):
    """The warnings of a loop over effective steps."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in optimizer.steps(total):
            step(model, optimizer, **options)
    return [str(w.message) for w in caught]


def bare(make, steps, model=None, **options):
    model = net() if model is None else model
    optimizer = MAKES[make](model.parameters())
    for _ in range(steps):
        step(model, optimizer, **options)
    return model


def apart(model, other):
    """Of held-out outputs, relative to how far they have moved from the start."""
    with torch.no_grad():
        there = other(HELD)
        return float((model(HELD) - there).norm() / (there - net()(HELD)).norm())


def batch(taken, size=10):
    return torch.randperm(len(X), generator=torch.Generator().manual_seed(taken))[:size]


# ---- how far ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("skip", ["auto", 7])
@pytest.mark.parametrize("total", [1, 5, 6, 23, 80])
def test_effective_steps_end_where_the_run_does(total, skip):
    model, optimizer = wrapped(skip=skip)
    seen = []
    for k in optimizer.steps(total):
        seen.append(k)
        step(model, optimizer)
        assert optimizer.effective_steps == optimizer.taken + optimizer.skipped <= total
    assert optimizer.effective_steps == total
    assert seen == sorted(seen)
    assert max(seen) < total
    assert all(result.steps <= 7 for result in optimizer.results if skip == 7)
    assert optimizer.skipped > 0 or total < 23


@pytest.mark.parametrize("make", MAKES)
def test_a_full_batch_loop_is_followed_to_where_it_leads(make):
    model, optimizer = wrapped(make=make)
    assert run(model, optimizer, 100) == []
    assert optimizer.action.following.follows is True
    assert optimizer.skipped >= 20
    assert apart(model, bare(make, 100)) < 0.1


def test_a_loop_that_counts_for_itself_is_told_once_that_it_trains_further():
    model, optimizer = wrapped()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(30):
            step(model, optimizer)
    assert sum("iterate over optimizer.steps(total)" in str(w.message) for w in caught) == 1
    assert optimizer.taken == 30
    assert optimizer.skipped > 0


def test_a_run_in_two_parts_is_one_run():
    model, optimizer = wrapped()
    run(model, optimizer, 40)
    run(model, optimizer, 100)
    assert optimizer.effective_steps == 100
    assert apart(model, bare("momentum", 100)) < 0.1


# ---- whether the loop is followed ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "times"), [({"scale": 60.0}, "60"), ({"scale": 1024.0}, r"1.02e\+03"),
                                                ({"clip": 1e-3}, "0.0")])  # fmt: skip
@pytest.mark.filterwarnings("ignore")
def test_a_gradient_of_another_size_is_said_and_nothing_skipped(options, times):
    """A sum for a mean, a scaler, a clip that was not given."""
    make = MAKES["AdamW"] if "scale" in options else MAKES["momentum"]
    model, optimizer = wrapped(make=make)
    said = run(model, optimizer, 60, **options)
    assert optimizer.skipped == 0
    assert optimizer.taken == 60
    assert len([words for words in said if "the objective's times" in words]) == 1
    assert re.search(f"the objective's times {times}.*clip=", said[0])


def test_a_clip_that_is_given_is_followed():
    model, optimizer = wrapped(clip=0.05)
    assert run(model, optimizer, 60, clip=0.05) == []
    assert optimizer.skipped > 0
    assert apart(model, bare("momentum", 60, clip=0.05)) < 0.1


def test_minibatches_are_said_once_and_nothing_skipped():
    model, optimizer = wrapped()
    said = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in optimizer.steps(100):
            step(model, optimizer, batch(optimizer.taken))
    said = [str(w.message) for w in caught]
    assert (optimizer.skipped, optimizer.taken) == (0, 100)
    assert len(said) == 1
    assert "Give batch=" in said[0]


@pytest.mark.filterwarnings("error")
def test_minibatches_that_are_told_of_cost_what_they_cost():
    model, optimizer = wrapped(batch=20, make="SGD", skip=20, budget=0.05)
    for _ in optimizer.steps(200):
        step(model, optimizer, batch(optimizer.taken, 20))
    assert optimizer.effective_steps == 200
    assert optimizer.action.following.follows is False
    for k, result in enumerate(optimizer.results):
        once = 0 if k else 2 / 3  # two passes of a model that is new, which are no cost of a skip
        assert result.cost == pytest.approx(3 * (result.gradient_evaluations - once) + result.dense_work)
        assert not result.accepted or result.steps > 3 * result.windows, "a window costs three of the loop's steps"


def test_along_minibatches_nothing_is_skipped_unless_it_is_asked_for():
    for skip, some in (("auto", False), (20, True)):
        model, optimizer = wrapped(batch=30, make="SGD", skip=skip, budget=1.0)
        for _ in optimizer.steps(300):
            step(model, optimizer, batch(optimizer.taken, 30))
        assert bool(optimizer.jumps) == some
        assert optimizer.action.following.follows is False


def test_dropout_in_the_loop_is_another_function():
    model = net(nn.Dropout(0.4))
    with pytest.raises(NondeterministicError):
        js.skip(js.supervised(model, X, Y), torch.optim.SGD(model.parameters(), 0.1))
    model, optimizer = wrapped(model, objective=js.supervised(model, X, Y, training=False))
    said = run(model, optimizer, 40)
    assert optimizer.skipped == 0
    assert len(said) == 1
    assert "dropout" in said[0]


def test_maximizing_loops_climb():
    model = net()
    inner = torch.optim.SGD(model.parameters(), 0.02, momentum=0.9, maximize=True)
    optimizer = js.JumpOptimizer(inner, js.supervised(model, X, Y))
    assert run(model, optimizer, 60, scale=-1.0) == []
    assert optimizer.skipped > 0
    assert apart(model, bare("momentum", 60)) < 0.1


# ---- what it costs ---------------------------------------------------------------------------------------------------


def asked(make, total, seed=1):
    """What a wrapped run asks of the network, over what a bare one does."""
    torch.manual_seed(seed)
    model = Counting()
    x = torch.randn(30, 4).double()
    y = torch.sin(x[:, :1]) + 0.3 * torch.randn(30, 1).double()
    optimizer = js.JumpOptimizer(make(model.parameters()), js.supervised(model, x, y))
    _ = model.asked
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in optimizer.steps(total):
            optimizer.zero_grad()
            LOSS(model(x), y).backward()
            optimizer.step()
    return model.asked / total, optimizer


@pytest.mark.parametrize("kind", ["RMSprop centered", "NAdam", "Adafactor", "layer-scaled"])
def test_where_skips_never_pay_a_run_costs_a_few_hundredths_more_and_less_so_the_longer_it_is(kind):
    """Steps that turn all the time, and copies whose steps are as dear as the network."""
    make = {**KINDS, **BY_HAND}[kind]
    short, _ = asked(make, 200)
    long, optimizer = asked(make, 800)
    assert optimizer.skipped <= 40, "the case is what it says"
    assert short <= 1.07
    assert long <= 1.04
    assert long < short


def test_where_they_pay_a_run_costs_a_fraction():
    ratio, optimizer = asked(MAKES["SGD"], 300)
    assert optimizer.effective_steps == 300
    assert ratio < 0.25


# ---- objectives from a function --------------------------------------------------------------------------------------


def test_a_function_that_returns_the_same_data_is_followed():
    model = net()
    _, optimizer = wrapped(model, objective=lambda: js.supervised(model, X, Y))
    assert run(model, optimizer, 60) == []
    assert optimizer.action.following.follows is True
    assert optimizer.skipped > 0
    assert apart(model, bare("momentum", 60)) < 0.1


def raises():
    torch.rand(3)
    raise KeyError("shard 7")


WRONG = {
    "it raises": (raises, "shard 7"),
    "nothing": (lambda: None, "NoneType, not a js.Objective"),
    "another thing": (lambda: 3.0, "float, not a js.Objective"),
    "another model's": (lambda: js.supervised(net(seed=3), X, Y), "does not hold|not the optimizer's|hold"),
    "not finite": (lambda: js.supervised(net(), X, Y * torch.nan), "NaN|finite"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_function_that_fails_is_a_warning_and_the_loop_is_the_bare_one(what):
    function, words = WRONG[what]
    model, optimizer = wrapped(objective=function)
    torch.manual_seed(4)
    said = run(model, optimizer, 40)
    drawn = torch.rand(2)
    torch.manual_seed(4)
    other = bare("momentum", 40, net())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert (optimizer.taken, optimizer.skipped) == (40, 0)
    assert said
    assert all(optimizer.results[k].outcome.name == "UNTRIED" for k in range(optimizer.jumps))
    assert optimizer.jumps <= 6, "ever less often"
    assert any(word in said[0] for word in words.split("|")), said[0]
    torch.manual_seed(4)
    net()
    assert drawn.shape == (2,)


def test_trouble_inside_a_skip_is_a_warning_and_the_loop_goes_on(monkeypatch):
    model, optimizer = wrapped()
    monkeypatch.setattr("jumpstart.training.skipping.Skipper.skip", lambda *_, **__: 1 / 0)
    said = run(model, optimizer, 30)
    assert "division by zero" in said[0]
    other = bare("momentum", 30)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


# ---- states ----------------------------------------------------------------------------------------------------------


def made(kind, make):
    model = net()
    options = {"skip": 15, "batch": 30, "budget": 1.0} if kind == "minibatches" else {"skip": 6}
    inner = MAKES[make](model.parameters())
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(inner, 150) if kind == "scheduler" else None
    optimizer = js.JumpOptimizer(inner, js.supervised(model, X, Y), scheduler=scheduler, **options)
    return model, optimizer, scheduler


def trained(parts, kind, total, stops=()):
    """Runs to its end; what was saved after those iterations."""
    model, optimizer, scheduler = parts
    saved, iteration = {}, 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in optimizer.steps(total):
            rows = batch(optimizer.taken, 30) if kind == "minibatches" else slice(None)
            step(model, optimizer, rows, scheduler=scheduler)
            iteration += 1
            if iteration in stops:
                file = io.BytesIO()
                torch.save([part and part.state_dict() for part in parts], file)
                saved[iteration] = file
    return saved


def plain(value):
    """A state with lists in place of tensors, so that it may be compared."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    return [plain(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def resumed(kind, make, stops, total=100):
    whole = made(kind, make)
    saved = trained(whole, kind, total, stops)
    for stop, file in saved.items():
        torch.manual_seed(1000 + stop)
        parts = made(kind, make)
        file.seek(0)
        for part, state in zip(parts, torch.load(file, weights_only=True), strict=True):
            if part is not None:
                part.load_state_dict(state)
        trained(parts, kind, total)
        for own, other in zip(parts[0].parameters(), whole[0].parameters(), strict=True):
            assert torch.equal(own, other), (kind, make, stop)
        assert (parts[1].taken, parts[1].skipped) == (whole[1].taken, whole[1].skipped)
        assert plain(parts[1].action.state_dict()) == plain(whole[1].action.state_dict())
    return len(saved), whole[1].skipped


@pytest.mark.parametrize(("kind", "make"), [("full batch", "AdamW"), ("scheduler", "momentum"), ("minibatches", "SGD")])
def test_a_run_that_was_stopped_goes_on_as_the_uninterrupted_one(kind, make):
    count, skipped = resumed(kind, make, (2, 6, 8))
    assert count == 3
    assert skipped > 0


@pytest.mark.slow
def test_runs_stopped_at_twenty_moments():
    for kind in ("full batch", "scheduler", "minibatches"):
        for make in MAKES:
            count, skipped = resumed(kind, make, range(1, 21), total=200)
            print(f"{kind}, {make}: {count} moments, {skipped} of 200 steps skipped")


def test_a_copy_and_a_pickle_go_on_by_themselves():
    model, optimizer = wrapped()
    run(model, optimizer, 30)
    twins = [copy.deepcopy((model, optimizer)), pickle.loads(pickle.dumps((model, optimizer)))]
    run(model, optimizer, 80)
    for other, own in twins:
        assert own.effective_steps == 30
        run(other, own, 80)
        assert own.effective_steps == 80
        assert apart(other, model) < 0.05


# ---- loops as people have them ---------------------------------------------------------------------------------------


def test_accumulated_gradients_are_the_batchs():
    model, optimizer = wrapped()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for k, _ in enumerate(optimizer.steps(60)):
            part = slice(20 * (k % 3), 20 * (k % 3) + 20)
            (LOSS(model(X[part]), Y[part]) / 3).backward()
            if k % 3 == 2:
                optimizer.step()
                optimizer.zero_grad()
    assert optimizer.effective_steps == 60
    assert optimizer.skipped > 0
    assert apart(model, bare("momentum", 60)) < 0.1


def test_a_closure_is_a_loop_as_well():
    model, optimizer = wrapped()

    def closure():
        optimizer.zero_grad()
        loss = LOSS(model(X), Y)
        loss.backward()
        return loss

    for _ in optimizer.steps(60):
        optimizer.step(closure)
    assert optimizer.skipped > 0
    assert apart(model, bare("momentum", 60)) < 0.1


def test_bfloat16_arithmetic_is_no_nondeterminism():
    torch.manual_seed(0)
    model = net().float()
    x, y = X.float(), Y.float()
    optimizer = js.JumpOptimizer(MAKES["momentum"](model.parameters()), js.supervised(model, x, y))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in optimizer.steps(60):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = LOSS(model(x).float(), y)
            loss.backward()
            optimizer.step()
    assert optimizer.effective_steps == 60
    assert bool(torch.isfinite(model(x)).all())
    assert all("nondeterminis" not in str(w.message).lower() for w in caught)
    assert all(result.outcome.name != "UNTRIED" for result in optimizer.results)


def test_a_compiled_model_and_one_with_checkpoints_are_followed():
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inside = net()

        def forward(self, x):
            return checkpoint(self.inside, x, use_reentrant=False)

    for model in (torch.compile(net(), backend="eager"), Checkpointed()):
        _, optimizer = wrapped(model)
        assert run(model, optimizer, 60) == []
        assert optimizer.skipped > 0
        assert apart(model, bare("momentum", 60)) < 0.1


class Adapted(nn.Module):
    """A frozen layer with a trained product of two thin matrices beside it (Hu et al., arXiv:2106.09685)."""

    def __init__(self, layer, rank=2):
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.a = nn.Parameter(torch.randn(rank, layer.in_features).double() * 0.3)
        self.b = nn.Parameter(torch.zeros(layer.out_features, rank).double())

    def forward(self, x):
        return self.layer(x) + x @ self.a.T @ self.b.T


def test_a_frozen_base_with_adapters_is_followed():
    models = []
    for _ in range(2):
        model = net()
        for k in (0, 2, 4):
            model[k] = Adapted(model[k])
        models.append(model)
    _, optimizer = wrapped(models[0], "AdamW")
    base = [p.clone() for p in models[0].parameters() if not p.requires_grad]
    assert run(models[0], optimizer, 60) == []
    assert optimizer.skipped > 0
    assert all(torch.equal(a, b) for a, b in zip(base, (p for p in models[0].parameters() if not p.requires_grad),
                                                 strict=True))  # fmt: skip
    assert apart(models[0], bare("AdamW", 60, models[1])) < 0.1


def test_parameters_added_in_the_middle_are_skipped_with_the_others():
    results = []
    for wraps in (False, True):
        model = net()
        model[0].requires_grad_(False)
        inner = MAKES["momentum"](model[2:].parameters())
        optimizer = js.JumpOptimizer(inner, js.supervised(model, X, Y), budget=1.0) if wraps else inner
        if wraps:
            assert run(model, optimizer, 20) == []
            model[0].requires_grad_(True)
            optimizer.add_param_group({"params": list(model[0].parameters()), "lr": 0.01})
            optimizer.action.objective = js.supervised(model, X, Y)
            before = optimizer.skipped
            assert run(model, optimizer, 80) == []
            assert optimizer.skipped > before
        else:
            for k in range(80):
                if k == 20:
                    model[0].requires_grad_(True)
                    optimizer.add_param_group({"params": list(model[0].parameters()), "lr": 0.01})
                step(model, optimizer)
        results.append(model)
    assert apart(results[1], results[0]) < 0.1


def test_a_second_wrapper_is_refused():
    model, optimizer = wrapped()
    with pytest.raises(InputError, match="jumps already"):
        js.JumpOptimizer(optimizer, js.supervised(model, X, Y))


def test_what_tries_lose_stays_within_the_budget_and_what_others_saved():
    _, optimizer = asked(KINDS["momentum"], 1000, seed=0)
    pace = optimizer.action.pace
    last = max(-result.saved for result in optimizer.results)  # what it came to is known after it
    assert pace.lost <= pace.saved + OVERDRAFT + BUDGET * optimizer.effective_steps + last


def test_minibatches_whose_loss_is_a_sum_are_no_mean():
    """The steps are ten times those that would be skipped."""
    model, optimizer = wrapped(batch=30, make="SGD", budget=1.0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in optimizer.steps(150):
            step(model, optimizer, batch(optimizer.taken, 30), scale=10.0)
    assert optimizer.skipped == 0 or any("times" in str(w.message) for w in caught)


def test_weights_that_the_loop_clamps_are_noticed():
    """A projection after each step; its writes count in ``_version`` of each parameter."""
    model, optimizer = wrapped(make="SGD")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in optimizer.steps(60):
            step(model, optimizer)
            with torch.no_grad():
                for p in model.parameters():
                    p.clamp_(-0.2, 0.2)
    assert optimizer.skipped == 0 or caught


def test_the_loops_own_past_is_rehearsed_before_a_first_skip_and_after_one_that_failed(monkeypatch):
    """What the network is asked for before it is known that a skip would hold: one gradient, to compare."""
    model, optimizer = wrapped()
    begun, kept = [], optimizer.action._rehearse
    monkeypatch.setattr(optimizer.action, "_rehearse", lambda *a: begun.append(a[-1]) or kept(*a))
    run(model, optimizer, 60)
    first = next(i for i, result in enumerate(optimizer.results) if result.accepted)
    assert begun[0] < 10
    assert first == 0
    assert optimizer.skipped > 30


def test_a_rehearsal_that_fails_costs_no_gradient():
    """Steps along noise: no forecast holds, and the network is asked once in all, to compare gradients."""
    torch.manual_seed(3)
    model = Counting()
    x, y = torch.randn(30, 4).double(), torch.randn(30, 1).double()
    optimizer = js.JumpOptimizer(torch.optim.Rprop(model.parameters(), 0.05), js.supervised(model, x, y))
    _ = model.asked
    for _ in optimizer.steps(600):
        optimizer.zero_grad()
        LOSS(model(x), y).backward()
        optimizer.step()
    assert optimizer.action.pace.failures > 1
    assert optimizer.jumps == 0
    assert model.asked <= 600 + 3


@pytest.mark.parametrize("at", [None, 1])
def test_who_says_when_is_not_kept_waiting(at):
    model, optimizer = wrapped(at=at)
    run(model, optimizer, 8)
    assert (optimizer.jumps > 0) == (at == 1)


def test_hooks_of_the_wrapper_are_called_once_a_step():
    model, optimizer = wrapped()
    seen = []
    before = optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    after = optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    step(model, optimizer)
    before.remove()
    after.remove()
    step(model, optimizer)
    assert seen == ["before", "after"]


def test_weights_that_are_no_numbers_are_said_a_few_times():
    model, optimizer = wrapped()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in optimizer.steps(60):
            if optimizer.taken == 6:
                model[0].weight.data[0, 0] = float("nan")
            step(model, optimizer)
    assert optimizer.effective_steps == 60
    assert 0 < len(said) <= 7, "waits double"


def test_the_very_batch_of_each_step_is_not_skipped_along():
    """Its gradient is the loop's own, and yet what comes next is another batch."""
    model, now = net(), {}
    optimizer = js.JumpOptimizer(
        MAKES["SGD"](model.parameters()), lambda: js.supervised(model, X[now["rows"]], Y[now["rows"]])
    )
    for _ in optimizer.steps(60):
        now["rows"] = batch(optimizer.taken, 20)
        step(model, optimizer, now["rows"])
    assert optimizer.skipped == 0

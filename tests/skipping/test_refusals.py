"""What cannot be skipped is refused by name, and what is out of the ordinary is skipped as the loop would have it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import jumpstart as js
from jumpstart.errors import InputError, NondeterministicError, NoParametersError

from ..optim.schedule_free import ScheduleFreeAdamW
from .loops import Loop, miss, same
from .optimizers import Around

X = torch.randn(40, 4, generator=torch.Generator().manual_seed(5)).double()
Y = torch.sin(X[:, :1])


def model(*layers, width=16, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, width), *layers, nn.Tanh(), nn.Linear(width, width), nn.Tanh(),
                         nn.Linear(width, 1)).double()  # fmt: skip


def loop(net, make=lambda p: torch.optim.AdamW(p, 0.003), warm=10, **options):
    return Loop(net, X, Y, torch.randn(30, 4).double(), optimizer=make(net.parameters()), options=options).take(warm)


# ---- refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, -3, True, 2.5, "20", None])
def test_steps_that_are_no_count_are_quoted(steps):
    with pytest.raises(InputError, match=r"steps="):
        loop(model(), warm=0).skip(steps)


@pytest.mark.parametrize(("name", "value"), [("tolerance", 0), ("tolerance", float("nan")), ("tolerance", "small"),
                                             ("clip", -1.0), ("clip", True), ("clip", float("inf"))])  # fmt: skip
def test_options_out_of_range_are_quoted(name, value):
    run = loop(model(), warm=0)
    with pytest.raises(InputError, match=f"{name}="):
        js.skip(run.objective(), run.optimizer, 5, **{name: value})


def test_things_of_another_kind_are_named():
    run = loop(model(), warm=0)
    with pytest.raises(InputError, match=r"js\.Objective .*got Sequential"):
        js.skip(run.model, run.optimizer)
    with pytest.raises(InputError, match="torch optimizer, got Linear"):
        js.skip(run.objective(), nn.Linear(1, 1))


def test_weights_that_the_optimizer_does_not_hold_are_named():
    net = model()
    with pytest.raises(InputError, match=r"does not hold \['2.weight', '2.bias', '4.weight', '4.bias'\].*params="):
        js.skip(js.supervised(net, X, Y), torch.optim.SGD(net[0].parameters(), 0.1))
    with pytest.raises(InputError, match="does not hold"):
        js.skip(js.supervised(net, X, Y), torch.optim.SGD(model().parameters(), 0.1))


def test_dropout_in_train_mode_has_no_gradient_to_forecast():
    run = loop(model(nn.Dropout(0.3)))
    before = run.everything()
    with pytest.raises(NondeterministicError, match="training=False"):
        run.skip(10)
    assert same(run.everything(), before)
    assert loop(model(nn.Dropout(0.3)), training=False).skip(10).steps == 10


def test_optimizers_whose_steps_cannot_be_replayed_are_named():
    net = model()
    objective = js.supervised(net, X, Y)
    held = list(net.parameters())
    for optimizer in (torch.optim.LBFGS(held), torch.optim.SparseAdam(held), Around(torch.optim.SGD(held, 0.1)),
                      js.JumpOptimizer(torch.optim.SGD(held, 0.1), objective)):  # fmt: skip
        with pytest.raises(InputError, match=type(optimizer).__name__):
            js.skip(objective, optimizer)


def test_complex_weights_are_named():
    net = model()
    net.scale = nn.Parameter(torch.ones(1, dtype=torch.complex128))
    objective = js.Objective(net, lambda f: f(X), js.losses.mse(Y))
    with pytest.raises(InputError, match="complex"):
        js.skip(objective, torch.optim.SGD(net.parameters(), 0.1))


def test_a_model_frozen_since_is_named():
    run = loop(model())
    objective = run.objective()
    run.model[0].requires_grad_(False)
    with pytest.raises(InputError, match=r"0.weight \(frozen\)"):
        js.skip(objective, run.optimizer)
    run.model.requires_grad_(False)
    with pytest.raises(NoParametersError):
        js.skip(run.objective(), run.optimizer)


# ---- out of the ordinary ---------------------------------------------------------------------------------------------


def test_schedule_free_methods_are_followed():
    """Both sequences, the average's weight and the count."""
    net, x = model(width=128), torch.randn(600, 4).double()  # large enough for steps of a copy to be cheap beside
    optimizer = ScheduleFreeAdamW(net.parameters(), 0.0003)
    optimizer.train()
    run = Loop(net, x, torch.sin(x[:, :1]), torch.randn(30, 4).double(), optimizer=optimizer).take(30)
    start, twin = run.outputs(), run.twin()
    twin.optimizer.param_groups[0]["train_mode"] = True
    result = run.skip(10)
    assert result.steps >= 4, result
    twin.take(result.steps)
    assert miss(start, run, twin) < 0.1
    assert optimizer.param_groups[0]["k"] == twin.optimizer.param_groups[0]["k"] == 30 + result.steps
    assert optimizer.param_groups[0]["weight_sum"] == twin.optimizer.param_groups[0]["weight_sum"]
    optimizer.eval()
    twin.optimizer.eval()
    assert miss(start, run, twin) < 0.1


def test_normalized_batches_in_train_mode_have_the_statistics_of_the_run():
    run = loop(model(nn.BatchNorm1d(16)), lambda p: torch.optim.SGD(p, 0.02))
    twin, before = run.twin(), {n: b.clone() for n, b in run.model.named_buffers()}
    result = run.skip(10)
    assert result.steps == 10
    twin.take(10)
    own, real = dict(run.model.named_buffers()), dict(twin.model.named_buffers())
    assert int(own["1.num_batches_tracked"]) == int(real["1.num_batches_tracked"])
    for name in ("1.running_mean", "1.running_var"):
        assert (own[name] - real[name]).norm() < 0.05 * (real[name] - before[name]).norm()
    assert run.model.training


def test_a_model_in_eval_mode_stays_in_it():
    run = loop(model(nn.BatchNorm1d(16), nn.Dropout(0.5)), warm=1)
    run.model.eval()
    before = {n: b.clone() for n, b in run.model.named_buffers()}
    run.take(10)
    start, twin = run.outputs(), run.twin()
    result = run.skip(10)
    assert result.steps >= 5
    assert not any(module.training for module in run.model.modules())
    assert all(torch.equal(b, before[n]) for n, b in run.model.named_buffers())
    assert miss(start, run, twin.take(result.steps)) < 0.1


def test_frozen_layers_stay():
    net = model()
    net[0].requires_grad_(False)
    run = loop(net)
    before = net[0].weight.detach().clone()
    start, twin = run.outputs(), run.twin()
    result = run.skip(10)
    assert result.steps >= 5
    assert torch.equal(net[0].weight, before)
    assert not net[0].weight.requires_grad
    assert miss(start, run, twin.take(result.steps)) < 0.1


def test_gradients_are_the_loops_own():
    """Those of inputs, too; and what is accumulated so far stays."""
    run = loop(model())
    run.x = X.clone().requires_grad_()
    objective = run.objective()
    run.optimizer.zero_grad()
    run.value().backward()
    before = [run.x.grad.clone(), *(p.grad.clone() for p in run.model.parameters())]
    held = [p.grad for p in run.model.parameters()]
    assert js.skip(objective, run.optimizer, 10).steps > 0
    assert all(torch.equal(a, b) for a, b in zip(before, [run.x.grad, *(p.grad for p in run.model.parameters())],
                                                 strict=True))  # fmt: skip
    assert all(a is p.grad for a, p in zip(held, run.model.parameters(), strict=True))


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_modes_of_autograd_around_a_skip_change_nothing(around):
    results = []
    for inside in (False, True):
        run = loop(model())
        if inside:
            with around():
                run.skip(10)
        else:
            run.skip(10)
        run.take(1)
        results.append(copy.deepcopy(run.model.state_dict()))
    assert same(*results)


def test_a_compiled_model_is_skipped_as_the_one_inside():
    results = []
    for compiled in (False, True):
        net = model()
        run = loop(torch.compile(net, backend="eager") if compiled else net)
        assert run.skip(10).steps > 0
        results.append(copy.deepcopy(net.state_dict()))
    assert all(torch.allclose(a, b, rtol=1e-10) for a, b in zip(results[0].values(), results[1].values(), strict=True))


def test_what_an_optimizer_holds_besides_stays_and_is_said():
    """Another loss may move it: its steps are not skipped along with the others."""
    net, extra = model(), nn.Parameter(torch.ones(3).double())
    run = Loop(net, X, Y, X, optimizer=torch.optim.SGD([*net.parameters(), extra], 0.02, momentum=0.9)).take(5)
    assert run.skip(5).steps == 5  # nobody moves it: nothing to say
    run.optimizer.zero_grad()
    (run.value() + extra.sum()).backward()
    run.optimizer.step()
    before = extra.detach().clone()
    with pytest.warns(RuntimeWarning, match="1 parameter of the SGD .*not the objective's.* stay where they are"):
        assert run.skip(5).steps == 5
    assert torch.equal(extra, before)

"""Memory that runs out at any operation of a fit, a jump or a solve: the model is whole, nothing is half."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import jumpstart as js
from jumpstart.errors import JumpstartError

from ..problems import classes, fill, flat, generator, randn


class Short(TorchDispatchMode):
    """Counts operations, and has no memory left for one of them."""

    def __init__(self, at: int | None = None, error: type[BaseException] = torch.OutOfMemoryError) -> None:
        super().__init__()
        self.count, self.at, self.error = 0, at, error

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        if self.count == self.at:
            raise self.error("no memory left, for the sake of the test")
        return func(*args, **(kwargs or {}))


def regression():
    model = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.BatchNorm1d(6), nn.Dropout(0.3), nn.Linear(6, 1)).double()
    return js.supervised(fill(model, 0).train(), randn(1, 12, 3), randn(2, 12, 1), training=False)


def classification():
    model = fill(nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 3)), 0)
    return js.supervised(model, randn(1, 12, 3), classes(0, 12, 3), "cross_entropy")


def pinn():
    model = fill(nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 1)), 0)
    x = torch.linspace(0, 1, 12, dtype=torch.float64)[:, None]
    return js.residual(model, js.Term(lambda f, x: torch.func.hessian(lambda z: f(z)[0])(x)[0, 0] + x[0], x))


PROBLEMS = {"regression": regression, "classification": classification, "pinn": pinn}
ACTS = {
    "jump": lambda objective, path: js.jump(objective),
    "jumps": lambda objective, path: [jumper.jump() for jumper in [js.Jumper(objective)] for _ in range(3)],
    "fit": lambda objective, path: js.fit(objective, jumps=4, path=path, progress=False, error=lambda model: 1.0),
    "solve": lambda objective, path: js.solve(objective).parameters(1.0),
}


def snapshot(model):
    """All that a model consists of: which objects, their modes, and the buffers' values."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    kept = {name: id(tensor) for name, tensor in tensors.items()}
    assert all(type(model.get_parameter(name)) is nn.Parameter for name, _ in model.named_parameters())
    modes = [module.training for module in model.modules()]
    needs = [p.requires_grad for p in model.parameters()]
    return kept, modes, needs, {name: b.clone() for name, b in model.named_buffers()}


def settings():
    return (
        torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype(),
        torch.backends.mha.get_fastpath_enabled(), torch.backends.cuda.flash_sdp_enabled(), torch.get_num_threads(),
    )  # fmt: skip


def attempt(name, act, at, error, path):
    """What became of an attempt in which memory ran out at the ``at``-th operation; "" for a fault that is none."""
    objective = PROBLEMS[name]()
    model = objective.model
    before, state, mine, start = snapshot(model), torch.get_rng_state(), settings(), flat(model).clone()
    try:
        with Short(at, error):
            ACTS[act](objective, path)
    except (error, JumpstartError):
        pass
    after = snapshot(model)
    assert before[:3] == after[:3], "the model consists of other things"
    assert all(torch.equal(value, after[3][key]) for key, value in before[3].items()), "buffers have moved"
    assert torch.equal(torch.get_rng_state(), state) and settings() == mine, "the process was left otherwise"
    now = flat(model)
    assert bool(torch.isfinite(now).all())
    if act == "solve":
        assert torch.equal(now, start), "solve has moved the model"
    # Whole: the start or the end of a jump, and as good as any loop finds a model.
    assert objective.value(objective.theta()) <= objective.value(start.to(objective.space.dtype)) * (1 + 1e-9)
    if act == "fit" and path.exists():
        resumed = PROBLEMS[name]()
        ACTS[act](resumed, path)
        whole = PROBLEMS[name]()
        ACTS[act](whole, None)
        assert torch.equal(flat(resumed.model), flat(whole.model)), "the resumed run ends elsewhere"
    js.jump(objective)  # nothing is stuck


def trial(count, folder):
    """(attempts, faults), spread over problems, acts and operations."""
    done, faults, draw = 0, [], generator(11)
    pairs = [(name, act) for name in PROBLEMS for act in ACTS]
    totals = {}
    for k, (name, act) in enumerate(pairs):
        with Short() as counted:
            ACTS[act](PROBLEMS[name](), folder / f"count{k}")
        totals[name, act] = counted.count
    for k in range(count):
        name, act = pairs[k % len(pairs)]
        at = 1 + int(torch.randint(0, totals[name, act], (), generator=draw))
        error = (torch.OutOfMemoryError, MemoryError)[k // len(pairs) % 2]
        try:
            attempt(name, act, at, error, folder / str(k))
        except Exception as fault:
            faults.append(f"{name}, {act}, operation {at}: {type(fault).__name__}: {str(fault)[:200]}")
        done += 1
    return done, faults


def test_memory_runs_out(tmp_path):
    assert trial(8, tmp_path) == (8, [])


@pytest.mark.slow
def test_memory_runs_out_often(tmp_path):
    count, faults = trial(300, tmp_path)
    print(f"\n{count} times out of memory, {len(faults)} faults")
    assert faults == []

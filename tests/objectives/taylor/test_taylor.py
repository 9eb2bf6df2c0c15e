"""Derivative streams against nested torch.func transforms: jets, traces, rows and Jacobians of residuals at points."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap

import jumpstart as js
from jumpstart.linearization.linearize import linearize
from jumpstart.objectives.taylor import jets, trace
from jumpstart.objectives.taylor.network import trace_network
from jumpstart.utils.fallback import NotFollowed

from ...problems import fill, randn, relative


def derivatives(fn, points: Tensor, index) -> Tensor:
    """∂^index fn at every point, by nested forward mode."""
    for i in index:
        fn = lambda x, f=fn, i=i: jvp(f, (x,), (torch.eye(len(x), dtype=x.dtype)[i],))[1]  # noqa: E731
    return vmap(fn)(points)


# -- jets ----------------------------------------------------------------------------------------------------------

TOWERS = {
    "tanh": (torch.tanh, jets.TANH), "sigmoid": (torch.sigmoid, jets.SIGMOID), "sin": (torch.sin, jets.SIN),
    "cos": (torch.cos, jets.COS), "exp": (torch.exp, jets.EXP),
    "silu": (torch.nn.functional.silu, jets.differentiated(torch.nn.functional.silu)),
}  # fmt: skip


@pytest.mark.parametrize("name", TOWERS)
def test_towers_are_the_derivatives_up_to_order_six(name):
    plain, tower = TOWERS[name]
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)
    found = tower(x, 6)
    assert len(found) == 7
    f = plain
    for k in range(7):
        torch.testing.assert_close(found[k], vmap(f)(x), rtol=1e-11, atol=1e-11)
        f = grad(f)


def inner(x):
    return torch.stack([torch.sin(x[0] * x[1]) + x[0], torch.exp(0.3 * x[0]) * x[1] ** 3])


def other(x):
    return torch.stack([torch.cos(x[0] + 2 * x[1]), x[0] ** 2 * x[1]])


COMPOSED = {
    "elementwise": (lambda x: torch.tanh(inner(x)), lambda a, b, w: jets.elementwise(jets.TANH, a, w)),
    "product": (lambda x: inner(x) * other(x), jets.product),
    "difference": (lambda x: inner(x) - other(x), lambda a, b, w: jets.summed(a, b, -1.0)),
}


@pytest.mark.parametrize("name", COMPOSED)
def test_jets_compose_like_nested_derivatives_up_to_order_four(name):
    whole, rule = COMPOSED[name]
    points, wanted = 0.5 * randn(0, 5, 2), jets.indices(2, 4)
    assert len(wanted) == 15
    a, b = ({index: derivatives(f, points, index) for index in wanted} for f in (inner, other))
    out = rule(a, b, wanted)
    for index in wanted:
        torch.testing.assert_close(out[index], derivatives(whole, points, index), rtol=1e-10, atol=1e-10)


# -- traces --------------------------------------------------------------------------------------------------------


class Custom(nn.Module):
    """Layers in a list, and what is done with them: ``way(self, x)``."""

    def __init__(self, way, d=2, width=5, out=1, first=None):
        super().__init__()
        self.way = way
        self.first = nn.Linear(first or d, width)
        self.layers = nn.ModuleList([nn.Linear(width, width) for _ in range(2)])
        self.last = nn.Linear(width, out)
        self.raw = nn.Parameter(torch.ones(width, width))
        self.register_buffer("mean", torch.full((d,), 0.2))
        self.drop, self.norm = nn.Dropout(0.5), nn.BatchNorm1d(width)
        self.eval()

    def forward(self, x):
        return self.way(self, x)


def loop(m, x):
    x = torch.tanh(m.first(x))
    for layer in m.layers:
        x = torch.tanh(layer(x))
    return m.last(x)


def skip(m, x):
    x = m.first(x)
    for layer in m.layers:
        x = x + torch.sin(layer(x))
    return m.last(x)


def gated(m, x):
    x = m.first(2.0 * (x - m.mean) / 3.0 - 1)
    return m.last(x * torch.sigmoid(x) - 0.5 * m.layers[0](x).tanh() * x)


KNOWN = {
    "loop": loop, "skip": skip, "gated, scaled inputs": gated,
    "constants left": lambda m, x: m.last(1.5 - 2 * torch.cos(m.first(-x))),
    "powers": lambda m, x: m.last(m.first(x) ** 3 + torch.square(m.first(x).exp())),
    "roots": lambda m, x: m.last(torch.sqrt(1 + m.first(x) ** 2) + torch.rsqrt(2 + x[..., :1].square()) ** 1.5),
    "quotients": lambda m, x: m.last(m.first(x) / (2 + x[..., :1] * x[..., 1:]) - 3 / (1.5 + m.first(x).sigmoid())),
    "logarithms": lambda m, x: m.last((1 + m.first(x).square()).log() + (2 + x[..., :1].sin()).reciprocal().pow(-2)),
    "asked twice": lambda m, x: loop(m, x) * skip(m, x),
    "cat": lambda m, x: m.last(torch.tanh(m.first(torch.cat([x, torch.sin(3 * x), x.cos()], -1)))),
    "slices": lambda m, x: m.last(m.first(x * x[..., :1] + torch.cat([x[..., [1]], x[..., 0:1].sin()], -1)).tanh()),
    "computed constants": lambda m, x: m.last(m.first(x * (2 * m.mean.cos())) * torch.arange(5, dtype=torch.float64)),
    "tied": lambda m, x: m.last(m.layers[0](torch.tanh(m.layers[0](torch.tanh(m.first(x)))))),
}  # fmt: skip
UNKNOWN = {
    "dropout": lambda m, x: m.last(m.drop(torch.tanh(m.first(x)))),
    "batch norm": lambda m, x: m.last(m.norm(m.first(x)[None]).reshape(-1)),
    "indexing": lambda m, x: m.last(torch.tanh(m.first(x * x[..., None][..., 0]))),
    "raw matrix": lambda m, x: m.last(torch.tanh(m.first(x) @ m.raw)),
    "control flow": lambda m, x: m.last(m.first(x).tanh() if x.dim() == 1 else m.first(x).sin()),
    "softmax": lambda m, x: m.last(torch.softmax(m.first(x), -1)),
}


def build(name):
    return fill(Custom((KNOWN | UNKNOWN)[name], first=6 if name == "cat" else 2), 3)


@pytest.mark.parametrize("name", KNOWN)
def test_programs_of_custom_modules_carry_all_derivatives(name):
    model, points, wanted = build(name), randn(1, 4, 2), jets.indices(2, 4)
    program = trace_network(model)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    out = program.run(tensors, jets.variable(points, wanted), wanted)
    for index in wanted:
        truth = derivatives(model, points, index)
        torch.testing.assert_close(out.get(index, torch.zeros_like(truth)), truth, rtol=1e-9, atol=1e-10)


def test_constants_of_a_network_are_computed_anew_and_leave_no_trace(monkeypatch):
    """torch.fx keeps constants in attributes of the model, which then looked changed: traced again every time."""
    model, points, traced = build("computed constants"), randn(1, 5, 2), []
    before = set(vars(model))
    monkeypatch.setattr(trace, "trace_network", lambda m: traced.append(m) or trace_network(m))
    objective = js.residual(model, js.Term(hessian_laplacian, points))
    for k in range(20):
        if k == 10:
            with torch.no_grad():
                model.mean.mul_(1.5)
        exact = 0.5 * float(oracle(model, [(hessian_laplacian, points, 1.0)])[0].square().sum())
        assert objective.value(objective.theta()) == pytest.approx(exact, rel=1e-10)
    assert len(traced) == 1
    assert set(vars(model)) == before
    assert objective.parts[0].local is not None


def test_a_network_that_writes_to_a_buffer_leaves_the_models_own():
    model, points = fill(Custom(lambda m, x: m.last(m.first(x * m.mean.mul_(2))) + m.mean.sum()), 3), randn(1, 5, 2)
    mean, plain = model.mean.clone(), copy.deepcopy(model)
    plain.way = lambda m, x: m.last(m.first(x * (2 * m.mean))) + (2 * m.mean).sum()
    objective = js.residual(model, js.Term(lambda net, x: net(x), points))
    assert objective.parts[0].local is not None
    agrees(objective, plain, [(lambda net, x: net(x), points, 1.0)])
    assert torch.equal(model.mean, mean)


def hessian_laplacian(net, x):
    return hessian(lambda z: net(z).squeeze())(x).diagonal().sum() + net(x).squeeze() ** 2


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown_modules_are_refused_and_stay_exact(name):
    model, points = build(name), randn(1, 5, 2)
    if name != "raw matrix":
        with pytest.raises(NotFollowed):
            trace_network(model)
    objective = js.residual(model, js.Term(hessian_laplacian, points))
    assert objective.parts[0].local is None
    agrees(objective, model, [(hessian_laplacian, points, 1.0)])


# -- residuals -----------------------------------------------------------------------------------------------------


class Reads:
    """A model as a residual sees it, without the library: parameters by name."""

    def __init__(self, model, tensors):
        self.model, self.tensors = model, tensors

    def __call__(self, x):
        # With tie_weights a module that stands at two places would be swapped twice, and not be given back.
        return functional_call(self.model, self.tensors, (x,), tie_weights=False)

    def __getattr__(self, name):
        if name not in self.tensors:
            raise AttributeError(name)
        return self.tensors[name]


def oracle(model, terms, params=None):
    """Rows and Jacobian by vmap(jacrev): [(fn, points, weight)]; parameters that need gradients, or those given."""
    names = params or [name for name, p in model.named_parameters() if p.requires_grad]
    table = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    table = {name: t.detach() for name, t in table.items()}
    sizes = [table[name].numel() for name in names]
    rows, blocks = [], []
    for fn, points, weight in terms:

        def row(theta, x, fn=fn, weight=weight):
            pieces = zip(names, theta.split(sizes), strict=True)
            moved = {name: piece.view(table[name].shape) for name, piece in pieces}
            return weight**0.5 * fn(Reads(model, {**table, **moved}), x).reshape(-1)

        theta = torch.cat([table[name].reshape(-1) for name in names])
        rows.append(vmap(row, (None, 0))(theta, points).reshape(-1))
        blocks.append(vmap(jacrev(row), (None, 0))(theta, points).reshape(-1, len(theta)))
    return torch.cat(rows), torch.cat(blocks)


def agrees(objective, model, terms, tolerance=1e-10, params=None):
    u, j = oracle(model, terms, params)
    lin = linearize(objective)
    assert relative(lin.u, u) <= tolerance
    assert relative(lin.jacobian(), j) <= tolerance
    v, w = randn(4, j.shape[1]).to(j), randn(5, j.shape[0]).to(j)
    assert relative(lin.jvp(v), j @ v) <= 10 * tolerance
    assert relative(lin.vjp(w), j.T @ w) <= 10 * tolerance


def scalar(net):
    return lambda z: net(z)[0]


def burgers(net, x):
    u, du = net(x)[0], grad(scalar(net))(x)
    return du[1] + u * du[0] - 0.1 * hessian(scalar(net))(x)[0, 0]


def along(net, x, i, order):
    """∂ᵢ^order of the first output, by nested grad."""
    f = scalar(net)
    for _ in range(order):
        f = lambda z, f=f: grad(f)(z)[i]  # noqa: E731
    return f(x)


def kdv(net, x):
    return along(net, x, 1, 1) + 6 * net(x)[0] * along(net, x, 0, 1) + along(net, x, 0, 3)


def stokes(net, x):
    u, f = net(x), lambda z: net(z)
    j, h = jacfwd(f)(x), jacfwd(jacrev(f))(x)
    return torch.stack([h[0, 0, 0] + h[0, 1, 1] - u[1] * j[0, 0], j[0, 0] + j[1, 1]])


def periodic(net, x):
    there = x + torch.tensor([2.0, 0.0], dtype=x.dtype)
    return torch.stack([net(x)[0] - net(there)[0], grad(scalar(net))(x)[0] - grad(scalar(net))(there)[0]])


RESIDUALS = {
    "laplacian, hessian": (hessian_laplacian, 1), "u u_x": (burgers, 1), "third order": (kdv, 1),
    "laplacian, jacrev": (lambda net, x: jacrev(grad(scalar(net)))(x).diagonal().sum(), 1),
    "fourth order": (lambda net, x: along(net, x, 0, 4) + along(net, x, 1, 2) - x[0], 1),
    "mixed": (lambda net, x: hessian(scalar(net))(x)[0, 1] * net(x)[0], 1),
    "two rows": (lambda net, x: torch.stack([along(net, x, 0, 2), grad(scalar(net))(x)[1] - net(x)[0]]), 1),
    "stokes": (stokes, 2), "two places": (periodic, 1), "value alone": (lambda net, x: net(x) - x[0], 1),
    "constant place": (lambda net, x: net(x)[0] - net(0 * x)[0] + grad(scalar(net))(torch.zeros_like(x))[1] * x[0], 1),
    "place without x": (lambda net, x: net(x)[0] - net(torch.ones(2, dtype=x.dtype))[0], 1),
}  # fmt: skip


def net_of(out=1, bias=True, d=2):
    return fill(nn.Sequential(nn.Linear(d, 6, bias), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, out)), 2)


def tie(model):
    return nn.Sequential(*model[:2], same := fill(nn.Linear(6, 6), 9), nn.Tanh(), same, fill(nn.Linear(6, 2), 8))


MODELS = {
    "plain": net_of, "tied layers": lambda out: tie(net_of(out)), "no bias": lambda out: net_of(out, bias=False),
    "frozen first layer": lambda out: nn.Sequential((net := net_of(out))[0].requires_grad_(False), *net[1:]),
}  # fmt: skip
CASES = [(name, "plain") for name in RESIDUALS]
CASES += [(name, kind) for name in ("u u_x", "two rows", "stokes") for kind in MODELS if kind != "plain"]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_rows_and_jacobian_by_streams(name, kind):
    (fn, out), points = RESIDUALS[name], randn(0, 7, 2)
    model = MODELS[kind](out)
    objective = js.residual(model, js.Term(fn, points, weight=2.5), js.Term(lambda net, x: net(x)[:1], points[:3]))
    assert objective.parts[0].local is not None, "the fast way was not found"
    agrees(objective, model, [(fn, points, 2.5), (lambda net, x: net(x)[:1], points[:3], 1.0)])


@pytest.mark.parametrize("name", ["laplacian, hessian", "u u_x", "two places"])
def test_streams_in_single_precision(name):
    fn, points, model = RESIDUALS[name][0], randn(0, 9, 2).float(), net_of().float()
    objective = js.residual(model, js.Term(fn, points))
    assert objective.parts[0].local is not None
    assert linearize(objective).u.dtype == torch.float32
    agrees(objective, model, [(fn, points, 1.0)], 1e-4)


def rowwise(net, row):
    return net(row[:2]) - row[2] * grad(scalar(net))(row[:2])[0]


def test_data_in_further_columns():
    points, fresh, model = randn(0, 8, 3), randn(1, 8, 3), net_of()
    objective = js.residual(model, js.Term(rowwise, points))
    assert objective.parts[0].local is not None
    agrees(objective, model, [(rowwise, points, 1.0)])
    agrees(objective.resampled([fresh]), model, [(rowwise, fresh, 1.0)])


@pytest.mark.parametrize("transform", [jacrev, jacfwd])
def test_a_derivative_of_the_network_itself_goes_by_streams(transform):
    """``jacrev(net)`` asks for ``net.__name__``, which a stand-in must answer by AttributeError alone."""
    fn, points, model = (lambda net, x: transform(net)(x)[0, 1] - x[0]), randn(0, 8, 2), net_of()
    objective = js.residual(model, js.Term(fn, points))
    agrees(objective, model, [(fn, points, 1.0)])
    assert objective.parts[0].local is not None, "exact, but by the slow way"


SMOOTH = [nn.SiLU, nn.GELU, nn.Softplus, nn.Mish, nn.ELU, nn.CELU, nn.LogSigmoid, nn.Softsign, nn.Tanhshrink]


@pytest.mark.parametrize("kind", SMOOTH)
def test_a_second_order_residual_with_every_activation_can_be_built_and_jumped(kind):
    model, points = fill(nn.Sequential(nn.Linear(2, 6), kind(), nn.Linear(6, 1)), 0), randn(0, 7, 2)
    objective = js.residual(model, js.Term(burgers, points))
    agrees(objective, model, [(burgers, points, 1.0)])
    assert objective.parts[0].local is not None
    assert js.jump(objective).accepted


@pytest.mark.parametrize(("dtype", "miss"), [(torch.float64, 1e-7), (torch.float32, 3e-4)])
def test_the_fast_way_is_kept_near_a_solution(dtype, miss):
    """Residuals that are small differences of large terms agree to the terms' rounding, not to their own."""
    model, points = net_of().to(dtype), randn(0, 40, 2).to(dtype)

    def curvature(net, x):
        return along(net, x, 0, 2) + along(net, x, 1, 2)

    source = vmap(lambda x: curvature(model, x))(points).detach() + miss * randn(1, 40).to(dtype)
    fn = lambda net, row: curvature(net, row[:2]) - row[2]  # noqa: E731
    objective = js.residual(model, js.Term(fn, torch.cat([points, source[:, None]], 1)))
    assert objective.parts[0].local is not None, "the slow way, from here to the end of a run"

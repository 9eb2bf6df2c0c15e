"""The kernel in gpytorch, against explicit Jacobians, closed forms and ``js.solve``."""

from __future__ import annotations

import copy
import math
import pickle
import subprocess
import sys

import gpytorch
import pytest
import torch
from torch import nn

import jumpstart as js
from jumpstart import gp as gps
from jumpstart.errors import InputError, NondeterministicError, NonFiniteError, OutputTypeError, ShapeError
from jumpstart.gp import EndpointGP, NetworkMean, NTKKernel, fit
from jumpstart.linearization.linearize import linearize

from ..problems import cnn, fill, flat, jacobian, mlp, randn, relative

INF = math.inf


@pytest.fixture
def net():
    return mlp(0, out=1)


def kernels(model, x, query, d=None):
    """K_QS and K_SS by explicit Jacobians."""
    root = 1.0 if d is None else d.sqrt()
    j, jq = jacobian(model, x) * root, jacobian(model, query) * root
    return jq @ j.T, j @ j.T


class Image(nn.Module):
    """A CNN of one output."""

    def __init__(self):
        super().__init__()
        self.net = cnn(0, out=1)

    def forward(self, x):
        assert x.shape[1:] == (1, 6, 6)
        return self.net(x)


# -- the kernel --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("matrix_free", [False, True])
def test_kernel_against_explicit_jacobians(matrix_free, net):
    x, query = randn(1, 7, 4), randn(2, 5, 4)
    k_qs, k_ss = kernels(net, x, query)
    kernel = NTKKernel(net, matrix_free=matrix_free)
    assert relative(kernel(x).to_dense(), k_ss) < 1e-12
    assert relative(kernel(query, x).to_dense(), k_qs) < 1e-12
    assert relative(kernel(x, query).to_dense(), k_qs.T) < 1e-12
    assert relative(kernel(x, diag=True), k_ss.diagonal()) < 1e-12
    assert relative(kernel(x[:5], query, diag=True), kernels(net, x[:5], query)[0].diagonal()) < 1e-12
    scaled = gpytorch.kernels.ScaleKernel(kernel).double()
    scaled.outputscale = 2.5
    assert relative(scaled(query, x).to_dense(), 2.5 * k_qs) < 1e-12
    assert relative(scaled(x, diag=True), 2.5 * k_ss.diagonal()) < 1e-12
    assert relative((scaled(query, x) @ randn(3, 7, 2)), 2.5 * k_qs @ randn(3, 7, 2)) < 1e-12
    assert kernel(x[:0], x).to_dense().shape == (0, 7)


def test_kernel_of_images(net):
    model, x = Image(), randn(1, 4, 1, 6, 6)
    kernel = NTKKernel(model, input_shape=(1, 6, 6))
    assert relative(kernel(x.flatten(1)).to_dense(), kernels(model, x, x)[1]) < 1e-12


def test_kernel_with_metric_some_parameters_and_one_of_several_outputs():
    model, x = mlp(0, out=3), randn(1, 6, 4)
    size = sum(p.numel() for p in model.parameters())
    d = torch.rand(size, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.1
    rows = (jacobian(model, x) * d.sqrt()).reshape(6, 3, -1)
    for output in range(3):
        found = NTKKernel(model, metric=d, output=output)(x).to_dense()
        assert relative(found, rows[:, output] @ rows[:, output].T) < 1e-12
    last = (jacobian(model, x)).reshape(6, 3, -1)[:, 1, -39:]  # the last layer's 36 weights and 3 biases
    for matrix_free in (False, True):
        found = NTKKernel(model, params=["4"], output=1, matrix_free=matrix_free)(x).to_dense()
        assert relative(found, last @ last.T) < 1e-12


def test_kernel_in_an_optimizers_metric(net):
    optimizer, x = torch.optim.AdamW(net.parameters(), 1e-2, weight_decay=0.1), randn(1, 6, 4)
    for _ in range(3):
        optimizer.zero_grad()
        net(x).square().sum().backward()
        optimizer.step()
    d = js.solve(js.supervised(net, x, x[:, :1]), metric=optimizer).basis.metric.root.square()
    assert relative(NTKKernel(net, metric=optimizer)(x).to_dense(), kernels(net, x, x, d)[1]) < 1e-12


@pytest.mark.parametrize("matrix_free", [False, True])
def test_inputs_of_another_precision_are_cast_and_the_kernel_cast_back(matrix_free, net):
    x = randn(1, 6, 4)
    found = NTKKernel(copy.deepcopy(net).float(), matrix_free=matrix_free)(x).to_dense()
    assert found.dtype == torch.float64
    assert relative(found, kernels(net, x, x)[1]) < 1e-5
    half = NTKKernel(copy.deepcopy(net).bfloat16(), matrix_free=matrix_free)(x.float()).to_dense()
    assert half.dtype == torch.float32
    assert relative(half.double(), kernels(net, x, x)[1]) < 0.05


def test_large_kernels_are_left_matrix_free(net, monkeypatch):
    monkeypatch.setattr(gps, "DENSE", 4)
    kernel, x = NTKKernel(net), randn(1, 6, 4)
    assert isinstance(kernel.forward(x[:4], x[:4]), torch.Tensor)
    assert isinstance(kernel.forward(x, x), gps.NTKOperator)
    assert isinstance(NTKKernel(net, matrix_free=False).forward(x, x), torch.Tensor)
    assert relative(kernel(x).to_dense(), kernels(net, x, x)[1]) < 1e-12
    assert relative(kernel(x, diag=True), kernels(net, x, x)[1].diagonal()) < 1e-12


def counted(monkeypatch):
    """The sizes of the dense kernels that are formed from now on."""
    sizes, dense = [], gps.dense_kernel

    def spy(call, params, x, x2=None, **options):
        found = dense(call, params, x, x2, **options)
        sizes.append(tuple(found.shape))
        return found

    monkeypatch.setattr(gps, "dense_kernel", spy)
    return sizes


def test_the_diagonal_does_not_form_the_whole(net, monkeypatch):
    sizes, x = counted(monkeypatch), randn(1, 70, 4)
    found = NTKKernel(net)(x, diag=True)
    assert sizes == [(32, 32), (32, 32), (6, 6)]
    assert relative(found, kernels(net, x, x)[1].diagonal()) < 1e-12


def test_the_last_matrices_are_kept_and_inputs_compared_by_value(net, monkeypatch):
    sizes, x, kernel = counted(monkeypatch), randn(1, 6, 4), NTKKernel(net)
    for _ in range(3):
        kernel(x.clone()).to_dense()
        kernel(x[:2], x).to_dense()
        kernel(x, diag=True)
    assert len(sizes) == 2
    before = kernel(x).to_dense()
    x[0] += 1
    assert not torch.allclose(kernel(x).to_dense(), before)
    assert len(sizes) == 3
    for i in range(5):
        kernel(x + i).to_dense()
    assert len(kernel._kept) == gps.KEPT


def test_the_kernel_belongs_to_the_weights_it_was_made_at(net):
    x, model = randn(1, 6, 4), net
    k, u = kernels(model, x, x)[1], model(x).detach()[:, 0]
    kernel = NTKKernel(model)
    mean = NetworkMean(kernel.function)
    before, state = flat(model).clone(), torch.get_rng_state()
    kernel(x).to_dense()
    assert torch.equal(flat(model), before)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1)
    assert relative(kernel(x[:3], x).to_dense(), k[:3]) < 1e-12
    assert relative(mean(x), u) < 1e-12
    assert not list(kernel.parameters())  # the network's weights are no hyperparameters
    assert relative(pickle.loads(pickle.dumps(kernel))(x).to_dense(), k) < 1e-12
    assert relative(copy.deepcopy(kernel)(x).to_dense(), k) < 1e-12


# -- the process -------------------------------------------------------------------------------------------------


def closed(model, x, y, query, noise, scale=1.0):
    """Kernel ridge regression on the residuals: mean, and the variance that is left."""
    k_qs, k = kernels(model, x, query)
    inverse = torch.linalg.inv(k + noise / scale * torch.eye(len(x), dtype=torch.float64))
    mean = model(query).detach()[:, 0] + k_qs @ inverse @ (y - model(x).detach()[:, 0])
    return mean, scale * (kernels(model, query, query)[1] - k_qs @ inverse @ k_qs.T).diagonal()


@pytest.mark.parametrize("matrix_free", [False, True])
@pytest.mark.parametrize(("noise", "scale"), [(0.3, 1.0), (0.01, 2.0)])
def test_posterior_is_kernel_ridge_regression(noise, scale, matrix_free, net):
    x, y, query = randn(1, 12, 4), randn(2, 12), randn(3, 5, 4)
    gp = EndpointGP(net, x, y, noise=noise, scale=scale, matrix_free=matrix_free)
    found, (mean, variance) = gp.predict(query), closed(net, x, y, query, noise, scale)
    assert relative(found.mean, mean) < 1e-9
    assert relative(found.variance, variance) < 1e-6
    assert relative(gp.likelihood(found).variance, variance + noise) < 1e-6
    damped = js.solve(js.supervised(net, x, y[:, None])).damped(gp.damping)
    assert relative(found.mean[:, None], damped.predict(query, INF)) < 1e-9


def test_without_noise_it_is_the_end_of_training(net):
    x, y, query = randn(1, 10, 4), randn(2, 10, 1), randn(3, 5, 4)
    gp = EndpointGP(net, x, y, noise=1e-9)
    expected = js.solve(js.supervised(net, x, y)).predict(query, INF)
    assert relative(gp.predict(query).mean[:, None], expected) < 1e-6


def test_conjugate_gradients_on_the_matrix_free_kernel(net):
    x, y, query = randn(1, 12, 4), randn(2, 12), randn(3, 5, 4)
    gp = EndpointGP(net, x, y, noise=0.3, matrix_free=True)
    expected = closed(net, x, y, query, 0.3)[0]
    with gpytorch.settings.max_cholesky_size(1), gpytorch.settings.max_cg_iterations(60):
        with gpytorch.settings.eval_cg_tolerance(1e-6):
            assert relative(gp.predict(query).mean, expected) < 1e-5
        again = EndpointGP(net, x, y, noise=0.3, matrix_free=True)
        for one in (gp, again):
            one.covar_module.raw_outputscale.requires_grad_(False)  # no search over ratios, for the test's sake
        assert fit(again, steps=2) == fit(gp, steps=2)  # the same random estimates


def test_a_handful_of_lines_of_plain_gpytorch(net):
    """The pieces in a user's own model, and gpytorch's own Adam loop."""

    class Model(gpytorch.models.ExactGP):
        def __init__(self, x, y, likelihood):
            super().__init__(x, y, likelihood)
            kernel = NTKKernel(net)
            self.mean_module = NetworkMean(kernel.function)
            self.covar_module = gpytorch.kernels.ScaleKernel(kernel)

        def forward(self, x):
            return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))

    x, y = randn(1, 12, 4), randn(2, 12)
    model = Model(x, y, gpytorch.likelihoods.GaussianLikelihood()).double()
    mll = gpytorch.mlls.ExactMarginalLogLikelihood(model.likelihood, model)
    optimizer, losses = torch.optim.Adam(model.parameters(), 0.1), []
    for _ in range(20):
        optimizer.zero_grad()
        loss = -mll(model(x), y)
        loss.backward()
        assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters())
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


def test_gradients_of_the_marginal_likelihood(net):
    """Against differences, in the noise and the scale."""
    x, y = randn(1, 12, 4), randn(2, 12)

    def evidence(noise, scale):
        gp = EndpointGP(net, x, y, noise=noise, scale=scale)
        gp.train()
        loss = gpytorch.mlls.ExactMarginalLogLikelihood(gp.likelihood, gp)(gp(*gp.train_inputs), gp.train_targets)
        return gp, loss

    gp, loss = evidence(0.2, 1.5)
    loss.backward()
    h = 1e-5
    for parameter, move in ((gp.likelihood.noise_covar.raw_noise, (1, 0)), (gp.covar_module.raw_outputscale, (0, 1))):
        ends = [evidence(0.2 * math.exp(s * h * move[0]), 1.5 * math.exp(s * h * move[1]))[1] for s in (1, -1)]
        difference = float((ends[0] - ends[1]).detach()) / (2 * h)
        assert float(parameter.grad.sum()) == pytest.approx(difference, rel=1e-5)  # parameters are logarithms


def data(seed, sigma, n=60):
    """A network, and noisy data from its own linearization."""
    model, x = mlp(seed, width=20, out=1), randn(seed, n, 4)
    lin = linearize(js.supervised(model, x, x[:, :1]))
    u = lin.u + lin.jvp(0.3 * randn(seed + 1, lin.theta.numel()))
    return model, x, u[:, 0], u[:, 0] + sigma * randn(seed + 2, n)


@pytest.mark.parametrize("sigma", [0.03, 0.3, 1.0])
def test_the_marginal_likelihood_finds_the_noise(sigma):
    worst = 1.0
    for seed in range(3):
        model, x, u, y = data(seed, sigma)
        gp = EndpointGP(model, x, y)
        found = fit(gp)
        ratio = gp.noise**0.5 / sigma
        worst = max(worst, ratio, 1 / ratio)
        # At an optimum, and one that is no worse than the truth.
        gp.train()
        truth = EndpointGP(model, x, y, noise=sigma**2, scale=0.09)
        values = [float(js_evidence(g)) for g in (gp, truth)]
        assert values[0] == pytest.approx(found, rel=1e-6)
        assert values[0] >= values[1] - 1e-6
        error = (gp.predict(x).mean - u).square().mean()
        assert float(error) < 1.2 * sigma**2
    print(f"σ = {sigma}: found within a factor {worst:.2f}")
    assert worst < 2


def js_evidence(gp):
    gp.train()
    mll = gpytorch.mlls.ExactMarginalLogLikelihood(gp.likelihood, gp)
    return (mll(gp(*gp.train_inputs), gp.train_targets) * len(gp.train_targets)).detach()


def test_fitting_computes_the_kernel_once_and_is_deterministic(monkeypatch):
    model, x, _, y = data(0, 0.1, n=40)
    gp = EndpointGP(model, x, y)
    sizes, state = counted(monkeypatch), torch.get_rng_state()
    first = fit(gp)
    assert sizes == [(40, 40)]
    assert torch.equal(torch.get_rng_state(), state)
    again = EndpointGP(model, x, y)
    assert fit(again) == first
    assert (again.noise, again.scale) == (gp.noise, gp.scale)


def test_a_scale_that_is_held_stays():
    model, x, _, y = data(0, 0.1, n=40)
    gp = EndpointGP(model, x, y, scale=0.5)
    gp.covar_module.raw_outputscale.requires_grad_(False)
    fit(gp)
    assert gp.scale == pytest.approx(0.5, rel=1e-12)
    assert gp.noise != pytest.approx(1e-2)


def test_variance_is_left_where_there_are_no_data():
    model, x, _, y = data(0, 0.03, n=30)
    gp = EndpointGP(model, x, y)
    fit(gp)
    at, away = gp.predict(x).variance, gp.predict(3 * randn(9, 30, 4)).variance
    prior = gp.scale * gp.covar_module.base_kernel(x, diag=True)
    assert bool((at > 0).all()) and bool((away > 0).all())
    assert bool((at < 0.1 * prior).all())
    assert bool((at < gp.noise).all())
    assert float(away.mean()) > 10 * float(at.mean())


def test_predictions_follow_noise_and_scale(net):
    x, y, query = randn(1, 12, 4), randn(2, 12), randn(3, 5, 4)
    gp = EndpointGP(net, x, y, noise=1.0)
    gp.predict(query)
    gp.set(0.1, 2.0)
    assert (gp.noise, gp.scale) == (pytest.approx(0.1, rel=1e-12), pytest.approx(2.0, rel=1e-12))
    assert relative(gp.predict(query).mean, closed(net, x, y, query, 0.1, 2.0)[0]) < 1e-9
    assert set(gp.state_dict()) >= {"likelihood.noise_covar.raw_noise", "covar_module.raw_outputscale"}
    assert not any("weight" in name for name in gp.state_dict())


def test_inputs_of_other_shapes_and_dtypes():
    y = randn(2, 6)
    images = randn(1, 6, 1, 6, 6)
    found = EndpointGP(Image(), images, y, noise=0.1).predict(images[:2])
    assert relative(found.mean, closed(Image(), images, y, images[:2], 0.1)[0]) < 1e-9

    words = nn.Sequential(nn.Embedding(9, 5), nn.Flatten(), nn.Linear(15, 1))
    tokens = torch.randint(0, 9, (6, 3), generator=torch.Generator().manual_seed(0))
    model = fill(words, 0)
    found = EndpointGP(model, tokens, y, noise=0.1).predict(tokens)
    assert relative(found.mean, closed(model, tokens, y, tokens, 0.1)[0]) < 1e-9

    curve = fill(nn.Sequential(nn.Unflatten(0, (-1, 1)), nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1)), 0)
    points = randn(1, 6)
    found = EndpointGP(curve, points, y, noise=0.1).predict(points[:3])
    assert relative(found.mean, closed(curve, points, y, points[:3], 0.1)[0]) < 1e-9

    single = mlp(0, out=1).float()
    x = randn(3, 12, 4)
    found = EndpointGP(single, x.float(), randn(4, 12).float(), noise=0.1).predict(x.float())
    assert found.mean.dtype == torch.float64
    assert relative(found.mean, closed(mlp(0, out=1), x, randn(4, 12), x, 0.1)[0]) < 1e-4


def test_single_precision_stays_positive_definite():
    """Rounding would leave the kernel of many points in few dimensions with negative eigenvalues."""
    model, x = fill(nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1)), 0).float(), randn(1, 300, 2).float()
    gp = EndpointGP(model, x, x.sum(1), noise=1e-12)
    kernel = gp.covar_module.base_kernel(gp.train_inputs[0]).to_dense()
    assert float(torch.linalg.eigvalsh(kernel)[0]) > 0
    assert float(torch.linalg.eigvalsh(kernel - 4e-6 * kernel.diagonal().mean() * torch.eye(300))[0]) < 0
    assert math.isfinite(fit(gp))


def test_batchnorm_in_eval_mode():
    model = nn.Sequential(fill(nn.Linear(4, 6), 0), nn.BatchNorm1d(6).double(), fill(nn.Linear(6, 1), 1))
    x, y = randn(1, 8, 4), randn(2, 8)
    found = EndpointGP(model, x, y, noise=0.1, training=False).predict(x[:3]).mean
    assert model.training
    assert relative(found, closed(model.eval(), x, y, x[:3], 0.1)[0]) < 1e-9


# -- misuse ------------------------------------------------------------------------------------------------------

X, Y = randn(1, 6, 4), randn(2, 6)
DROPPED = nn.Sequential(fill(nn.Linear(4, 30), 0), nn.Dropout(0.5), fill(nn.Linear(30, 1), 1))
NORMED = nn.Sequential(fill(nn.Linear(4, 6), 0), nn.BatchNorm1d(6).double(), fill(nn.Linear(6, 1), 1))


class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = mlp(0, out=1)

    def forward(self, x):
        return {"logits": self.net(x)}


class Dead(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = mlp(0, out=1)

    def forward(self, x):
        return 0 * self.net(x)


def ready(**options):
    return EndpointGP(mlp(0, out=1), X, Y, **options)


BAD = {
    "several outputs": (lambda: NTKKernel(mlp(0))(X).to_dense(), ShapeError, r"3\): pick one with output=, not None"),
    "an output too many": (lambda: NTKKernel(mlp(0), output=3)(X).to_dense(), ShapeError, "output=, not 3"),
    "no module": (lambda: NTKKernel(3), InputError, "torch.nn.Module, got int"),
    "no such parameter": (lambda: NTKKernel(mlp(0), params=["9"]), InputError, "'9' matches none"),
    "a metric of another size": (lambda: NTKKernel(mlp(0), metric=torch.ones(3)), ShapeError, "3 entries"),
    "dropout": (lambda: NTKKernel(DROPPED)(X).to_dense(), NondeterministicError, "Dropout|model.eval"),
    "BatchNorm": (lambda: NTKKernel(NORMED), InputError, "'1' is BatchNorm in train mode.*training=False"),
    "a dictionary": (lambda: NTKKernel(Wrapped())(X).to_dense(), OutputTypeError, "dict"),
    "inputs of another width": (lambda: NTKKernel(mlp(0, out=1))(X[:, :3]).to_dense(), ShapeError, "cannot be eval"),
    "a batch of GPs": (lambda: NTKKernel(mlp(0, out=1))(X[None]).to_dense(), ShapeError, r"not \(n, d\)"),
    "a shape that does not fit": (lambda: NTKKernel(Image(), input_shape=(6,))(X).to_dense(), ShapeError, "6 entries"),
    "inputs with gradients": (
        lambda: NTKKernel(mlp(0, out=1))(X.clone().requires_grad_()).to_dense(), InputError, "detach"),
    "inputs with NaN": (lambda: EndpointGP(mlp(0, out=1), X * math.nan, Y), NonFiniteError, "inputs"),
    "targets with infinity": (lambda: EndpointGP(mlp(0, out=1), X, Y * INF), NonFiniteError, "targets"),
    "a list": (lambda: EndpointGP(mlp(0, out=1), X.tolist(), Y), InputError, "must be tensors"),
    "too few targets": (lambda: EndpointGP(mlp(0, out=1), X, Y[:5]), ShapeError, "one target a sample"),
    "targets of several outputs": (lambda: EndpointGP(mlp(0), X, randn(1, 6, 3)), ShapeError, "one target a sample"),
    "no samples": (lambda: EndpointGP(mlp(0, out=1), X[:0], Y[:0]), ShapeError, "one target a sample"),
    "negative noise": (lambda: ready(noise=-1.0), InputError, "noise=-1.0"),
    "NaN noise": (lambda: ready(noise=math.nan), InputError, "noise=nan"),
    "a kernel of zero": (lambda: EndpointGP(Dead(), X, Y), InputError, "no weight moves"),
    "zero scale": (lambda: ready(scale=0.0), InputError, "scale=0.0"),
    "query points of another shape": (lambda: ready().predict(X[:, :2]), ShapeError, r"shape \(4,\)"),
    "query points with NaN": (lambda: ready().predict(X * math.nan), NonFiniteError, "query points"),
    "no steps": (lambda: fit(ready(), steps=0), InputError, "steps=0"),
    "no residual": (
        lambda: fit(EndpointGP(mlp(0, out=1), X, mlp(0, out=1)(X).detach())), InputError, "meets every target"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_misuse_is_named(name):
    call, error, message = BAD[name]
    with pytest.raises(error, match=message):
        call()


def test_importing_jumpstart_does_not_import_gpytorch():
    code = "import jumpstart, sys; assert 'gpytorch' not in sys.modules; jumpstart.gp; assert 'gpytorch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)

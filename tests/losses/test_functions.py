"""Functions as losses: kinks are found and refused, constant curvature is found, errors name the loss."""

from __future__ import annotations

import math
import time

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import jumpstart as js
from jumpstart import errors
from jumpstart.losses import Convex, CrossEntropy, Huber, Logistic, Poisson, as_loss, mse

from ..problems import classes, mlp, randn, relative

SPREAD = torch.tensor([[2.0, 0.5, 0], [0.5, 1, 0], [0, 0, 3]])

FLAT = {  # curvature is the same everywhere
    "squares": lambda u, y: (u - y).square().mean(),
    "masked squares": lambda u, y: ((y > 0) * (u - y).square()).sum(),
    "Mahalanobis": lambda u, y: (u - y) @ SPREAD.to(u) @ (u - y),
    "difference of two": lambda u, y: (u[0] - u[1] - y[0]).square(),
    "shifted below zero": lambda u, y: (u - y).square().sum() - 5,
    "linear": lambda u, y: (u * y).sum(),
    "nothing": lambda u, y: 0 * u.sum(),
}
SMOOTH = {
    "huber": lambda u, y: F.huber_loss(u, y),
    "huber 0.01": lambda u, y: F.huber_loss(u, y, delta=0.01),
    "huber 1e-4": lambda u, y: F.huber_loss(u, y, delta=1e-4),
    "smooth l1": lambda u, y: F.smooth_l1_loss(u, y, beta=0.1),
    "pseudo-huber": lambda u, y: (torch.sqrt(1 + (u - y).square()) - 1).sum(),
    "pseudo-huber 1e-3": lambda u, y: 1e-3 * (torch.sqrt(1 + ((u - y) / 1e-3).square()) - 1).sum(),
    "log cosh": lambda u, y: (F.softplus(2 * (u - y)) - (u - y)).sum(),
    "log cosh, clamped": lambda u, y: torch.log(torch.cosh((u - y).clamp(-300, 300))).sum(),
    "softplus hinge": lambda u, y: F.softplus(-torch.sign(y) * u).sum(),
    "softplus hinge, steep": lambda u, y: F.softplus(-torch.sign(y) * u, beta=1000.0).sum(),
    "squared hinge": lambda u, y: F.relu(1 - torch.sign(y) * u).square().sum(),
    "huberized hinge": lambda u, y: F.huber_loss(F.relu(1 - torch.sign(y) * u), torch.zeros_like(u)),
    "logistic": lambda u, y: F.binary_cross_entropy_with_logits(u, torch.sigmoid(y)),
    "poisson": lambda u, y: F.poisson_nll_loss(u, y.abs()),
    "poisson, full": lambda u, y: F.poisson_nll_loss(u, y.abs() + 1.5, full=True),
    "exponential": lambda u, y: torch.exp(-torch.sign(y) * u).sum(),
    "fourth power": lambda u, y: (u - y).pow(4).sum(),
    "third power": lambda u, y: (u - y).abs().pow(3).sum(),
    "power 1.5": lambda u, y: (u - y).abs().pow(1.5).sum(),
    "softmax": lambda u, y: torch.logsumexp(u, 0) - (u * y.softmax(0)).sum(),
    "margin of two": lambda u, y: -F.logsigmoid(u[0] - u[1]),
    "expectile": lambda u, y: (torch.where(u > y, 0.9, 0.1) * (u - y).square()).sum(),
    "smoothed quantile": lambda u, y: (0.9 * (y - u) + F.softplus(-(y - u) * 20) / 20).sum(),
    "gamma": lambda u, y: (u + y.abs() * torch.exp(-u)).sum(),
    "rounded norm": lambda u, y: torch.sqrt((u - y).square().sum() + 1e-6),
}
KINKED = {
    "l1": lambda u, y: F.l1_loss(u, y),
    "absolute value": lambda u, y: (u - y).abs().sum(),
    "quantile": lambda u, y: torch.maximum(0.9 * (y - u), -0.1 * (y - u)).mean(),
    "hinge": lambda u, y: F.relu(1 - torch.sign(y) * u).sum(),
    "clamped": lambda u, y: (1 - torch.sign(y) * u).clamp(min=0).sum(),
    "margins": lambda u, y: F.relu(1 + u - u[1]).sum(),
    "tube": lambda u, y: F.relu((u - y).abs() - 0.1).sum(),
    "narrow tube": lambda u, y: F.relu((u - y).abs() - 1e-3).sum(),
    "norm": lambda u, y: torch.linalg.vector_norm(u - y),
    "squares and a little": lambda u, y: (u - y).square().sum() + 0.1 * (u - y).abs().sum(),
    "lasso": lambda u, y: (u - y).square().sum() + 0.01 * u.abs().sum(),
    "largest": lambda u, y: u.max() - u[0],
    "largest distance": lambda u, y: (u - y).abs().max(),
    "truncated": lambda u, y: torch.minimum((u - y).square(), torch.ones_like(u)).sum(),
    "exponential and l1": lambda u, y: torch.exp(u).sum() + 0.1 * (u - y).abs().sum(),
    "ranking": lambda u, y: F.relu(0.5 - (u[0] - u[1])),
    "leaky": lambda u, y: F.leaky_relu(u - y, 0.5).sum(),
    "distance from another sample's way": lambda u, y: (u - y.flip(0)).abs().sum(),
}
TABLE = {**FLAT, **SMOOTH, **KINKED}


@pytest.mark.parametrize(
    ("n", "dtype"),
    [
        (4, torch.float64),
        pytest.param(1, torch.float64, marks=pytest.mark.slow),
        pytest.param(300, torch.float64, marks=pytest.mark.slow),
        pytest.param(5, torch.float32, marks=pytest.mark.slow),
    ],
)
def test_kinks_and_constant_curvature_are_found(n, dtype):
    """On a table of 50 losses nothing is found that is not there, and nothing is missed."""
    y, u = (3 * randn(n, n, 3)).to(dtype), randn(n + 1, n, 3).to(dtype)
    wrong = {}
    for name, fn in TABLE.items():
        loss = Convex(fn, y).to(u)
        found, begun = "smooth", time.perf_counter()
        try:
            loss.check(u)
            found = "flat" if loss.quadratic else "smooth"
        except errors.NotSmoothError:
            found = "kinked"
        expected = "flat" if name in FLAT else "smooth" if name in SMOOTH else "kinked"
        if found != expected:
            wrong[name] = found
        assert time.perf_counter() - begun < 20, name
    assert not wrong


@pytest.mark.parametrize(
    "loss", ["l1", "hinge", "quantile", F.l1_loss, nn.L1Loss(), nn.MultiMarginLoss(), F.multi_margin_loss,
             lambda u, y: F.multi_margin_loss(u, y), KINKED["absolute value"]],
)  # fmt: skip
def test_kinked_losses_are_refused_with_a_remedy(loss):
    y = classes(0, 6, 3) if "argin" in repr(loss) or getattr(loss, "__name__", "") == "<lambda>" else randn(0, 6, 3)
    y = randn(0, 6, 3) if loss is KINKED["absolute value"] else y
    with pytest.raises(errors.NotSmoothError, match=r"huber.*softplus"):
        js.supervised(mlp(0), randn(0, 6, 4), y, loss=loss)


def test_the_refusal_says_what_jumps_and_where():
    def tilted(u, y):
        return torch.maximum(0.9 * (y - u), -0.1 * (y - u)).sum()

    with pytest.raises(errors.NotSmoothError, match=r"'tilted' .*-0\.9 to 0\.1.*sample \d"):
        js.supervised(mlp(0, out=1), randn(0, 6, 4), randn(1, 6, 1), loss=tilted)


W = torch.tensor([1.0, 2.0, 0.5]).double()


def in_place(u, y):
    total = torch.zeros(3).double()
    total += (u - y).square()  # an unbatched tensor cannot take a batched one
    return total.sum()


def over_batch(u, y):
    return (u - F.one_hot(y, 3)).square().sum(1).mean()


def torch_only(u, y):
    return torch.tensor((u.detach().numpy() ** 2).sum())


BROKEN = {
    "class weights by index": (lambda u, y: W[y] * F.cross_entropy(u, y), "class_weights=W"),
    "class weights on one sample": (lambda u, y: F.cross_entropy(u, y, weight=W), "class_weights=W"),
    "if": (lambda u, y: u.sum() if u.sum() > 0 else u.square().sum(), "torch.where"),
    "item": (lambda u, y: (u - float(u[0])).square().sum(), "torch.where|reads a value"),
    "in place": (in_place, "in place"),
    "whole batch": (over_batch, r"ONE sample, outputs of shape \(3,\) and a target of shape \(\)"),
    "no scalar": (lambda u, y: (u - 1).square(), "scalar"),
    "no tensor": (lambda u, y: 3.0, "scalar"),
    "numpy": (torch_only, "loss 'torch_only'"),
    "gaussian": (lambda u, y: F.gaussian_nll_loss(u[:1], y.double(), u[1:2].exp()), "reads a value"),
    "typo": (lambda u, y: u.squares().sum(), "loss '<lambda>' cannot be evaluated"),
    "undefined": (lambda u, y: torch.log(u - 1e3).sum(), "NaN or infinite for 6 of 6 samples"),
    "curved down": (lambda u, y: -u.square().sum(), "negative curvature"),
    "another dtype": (lambda u, y: (u @ torch.eye(3)).square().sum(), r"to\(u.dtype\)"),
    "defined between 0 and 1": (lambda u, y: F.binary_cross_entropy(0.5 + 0.1 * u, 0.5 + 0 * u), "logits"),
    "of probabilities": (nn.BCELoss(), "logits"),
    "a class": (nn.MSELoss, "is a class"),
    "a class of ours": (Huber, "is a class"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_errors_of_a_loss_name_the_loss_and_the_remedy(name):
    fn, words = BROKEN[name]
    with pytest.raises(errors.InputError, match=words) as found:
        js.supervised(mlp(0), randn(0, 6, 4), classes(0, 6, 3), loss=fn)
    assert "loss" in str(found.value)
    assert "cannot be evaluated on inputs" not in str(found.value)
    assert len(str(found.value)) < 700


def test_a_function_that_insists_on_single_precision():
    """Its tensors are float32, and so is the network: flows ask in float64 all the same."""
    model, x, y = mlp(0).float(), randn(0, 8, 4).float(), randn(1, 8, 3).float()
    objective = js.supervised(model, x, y, loss=lambda u, t: (u - t) @ SPREAD @ (u - t))
    assert objective.loss.quadratic
    wide = js.supervised(mlp(0), x.double(), y.double(), loss=lambda u, t: (u - t) @ SPREAD.double() @ (u - t))
    assert relative(js.solve(objective, "dense").outputs(0.1).double(), js.solve(wide, "dense").outputs(0.1)) < 1e-4
    assert js.jump(objective).accepted


OPTIONS = {
    "mse": {"weights", "mask"},
    "huber": {"weights", "mask", "delta"},
    "poisson": {"weights", "mask"},
    "logistic": {"weights", "mask", "pos_weight"},
    "multi_label": {"weights", "mask", "pos_weight"},
    "cross_entropy": {"weights", "mask", "class_weights", "ignore_index", "label_smoothing"},
    FLAT["squares"]: {"weights"},
}
VALUES = {
    "weights": torch.ones(6), "mask": torch.ones(6).bool(), "delta": 0.5, "pos_weight": 2.0,
    "class_weights": torch.ones(3), "ignore_index": 7, "label_smoothing": 0.1,
}  # fmt: skip


@pytest.mark.parametrize("name", OPTIONS, ids=lambda name: name if isinstance(name, str) else "function")
def test_options_do_something_or_are_refused(name):
    y = classes(0, 6, 3) if name == "cross_entropy" else torch.rand(6, 3).double()
    for option, value in VALUES.items():
        if option in OPTIONS[name]:
            assert js.supervised(mlp(0), randn(0, 6, 4), y, loss=name, **{option: value}).shape == (6, 3)
        else:
            with pytest.raises(errors.InputError, match=f"{option}= does nothing"):
                js.supervised(mlp(0), randn(0, 6, 4), y, loss=name, **{option: value})
    with pytest.raises(errors.InputError, match="beside a js"):
        js.supervised(mlp(0), randn(0, 6, 4), loss=mse(randn(0, 6, 3)), weights=torch.ones(6))


@pytest.mark.parametrize(
    ("loss", "y", "kind"),
    [
        (nn.MSELoss(), randn(0, 9, 4), object),
        (F.mse_loss, randn(0, 9, 4), object),
        (nn.CrossEntropyLoss(torch.rand(4).double() + 0.1, label_smoothing=0.1), classes(0, 9, 4), CrossEntropy),
        (nn.CrossEntropyLoss(ignore_index=2), classes(0, 9, 4), CrossEntropy),
        (F.cross_entropy, torch.tensor([0, -100, 2, 3, 1, -100, 0, 0, 1]), CrossEntropy),
        (nn.BCEWithLogitsLoss(pos_weight=torch.rand(4).double()), (randn(0, 9, 4) > 0).double(), Logistic),
        (nn.MultiLabelSoftMarginLoss(), (randn(0, 9, 4) > 0).double(), Logistic),
        (nn.HuberLoss(delta=0.3), randn(0, 9, 4), Huber),
        (nn.PoissonNLLLoss(), randn(0, 9, 4).abs(), Poisson),
        (nn.SmoothL1Loss(beta=0.5), randn(0, 9, 4), Convex),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else getattr(v, "__name__", ""),
)
def test_losses_of_torch_are_what_they_are(loss, y, kind):
    u = randn(1, 9, 4)
    found = as_loss(loss, y).to(u)
    found.check(u)
    assert isinstance(found, kind)
    assert relative(found.value(u), loss(u, y)) < 1e-12


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (nn.MSELoss(reduction="sum"), "reduction='mean'"),
        (nn.BCEWithLogitsLoss(weight=torch.ones(3)), "weights="),
        (nn.PoissonNLLLoss(full=True), "poisson"),
    ],
)
def test_losses_of_torch_that_are_no_mean(loss, words):
    with pytest.raises(errors.InputError, match=words):
        as_loss(loss, randn(0, 6, 3))


def test_classes_of_torch_are_in_another_place():
    model = nn.Sequential(mlp(0, out=16), nn.Unflatten(1, (4, 4)))
    with pytest.raises(errors.InputError, match="in the last"):
        js.supervised(model, randn(0, 6, 4), classes(0, 24, 4).reshape(6, 4), loss=nn.CrossEntropyLoss())


def test_given_twice():
    with pytest.raises(errors.InputError, match="class_weights= is given twice"):
        as_loss(nn.CrossEntropyLoss(weight=torch.ones(3)), classes(0, 6, 3), class_weights=torch.ones(3))


NAN = randn(0, 6, 3)
NAN[2, 1] = math.nan
BAD = {
    "NaN": (NAN, "mse", {}, errors.NonFiniteError, "mask="),
    "NaN where the mask says it counts": (NAN, "mse", {"mask": torch.ones(6, 3).bool()}, errors.NonFiniteError, "mask"),
    "mask of another shape": (NAN, "mse", {"mask": torch.ones(3).bool()}, errors.ShapeError, "mask"),
    "mask of weights": (NAN, "huber", {"mask": torch.rand(6, 3)}, errors.InputError, "0 and 1"),
    "mask of nothing": (NAN, "mse", {"mask": torch.zeros(6, 3).bool()}, errors.TargetError, "no target"),
    "mask as a list": (NAN, "mse", {"mask": [True] * 6}, errors.InputError, "list"),
    "weights by entry": (randn(0, 6, 3), "mse", {"weights": torch.ones(6, 3)}, errors.ShapeError, "one each"),
    "negative weights": (randn(0, 6, 3), "mse", {"weights": -torch.ones(6)}, errors.InputError, "0 or more"),
    "weights of zero": (randn(0, 6, 3), "mse", {"weights": torch.zeros(6)}, errors.InputError, "nothing left"),
    "delta": (randn(0, 6, 3), "huber", {"delta": 0.0}, errors.InputError, "delta=0.0"),
    "integers": (classes(0, 6, 3), "huber", {}, errors.TargetError, "float"),
    "negative counts": (randn(0, 6, 3), "poisson", {}, errors.TargetError, "0 or more"),
    "pos_weight": (torch.ones(6, 3), "logistic", {"pos_weight": torch.ones(2)}, errors.ShapeError, "pos_weight"),
    "negative pos_weight": (torch.ones(6, 3), "logistic", {"pos_weight": -1.0}, errors.InputError, "pos_weight"),
    "class_weights": (classes(0, 6, 3), "cross_entropy", {"class_weights": torch.ones(4)}, errors.ShapeError, "4"),
    "class_weights list": (classes(0, 6, 3), "cross_entropy", {"class_weights": [1.0] * 3}, errors.InputError, "list"),
    "smoothing": (classes(0, 6, 3), "cross_entropy", {"label_smoothing": 1.5}, errors.InputError, "1.5"),
    "ignore_index of probabilities": (
        torch.full((6, 3), 1 / 3), "cross_entropy", {"ignore_index": 1}, errors.InputError, "mask=",
    ),
    "every target ignored": (
        torch.ones(6).long(), "cross_entropy", {"ignore_index": 1}, errors.TargetError, "no loss",
    ),
    "only classes of weight 0": (
        torch.zeros(6).long(), "cross_entropy", {"class_weights": torch.tensor([0.0, 1, 1])}, errors.InputError, "left",
    ),
    "complex": (torch.ones(6, 3, dtype=torch.complex64), "mse", {}, errors.TargetError, "complex"),
    "unknown": (randn(0, 6, 3), "msee", {}, errors.InputError, "huber"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_used_is_refused(name):
    y, loss, options, error, words = BAD[name]
    with pytest.raises(error, match=words):
        js.supervised(mlp(0), randn(0, 6, 4), y, loss=loss, **options)


def test_a_run_that_leaves_the_domain_of_its_loss():
    """It answers wherever one has looked, and raises where the run goes."""
    objective = js.supervised(
        mlp(0), randn(0, 6, 4), randn(1, 6, 3),
        loss=lambda u, y: F.binary_cross_entropy(0.5 + 5e-4 * u, torch.ones_like(u)),
    )  # fmt: skip
    with pytest.raises(errors.InputError, match="at other outputs than the present ones"):
        js.solve(objective, "dense").outputs(1e9)


class Unusual(js.Loss):
    """A quadratic loss of a user's own, by what the interface asks for alone."""

    quadratic = True
    known_convex = True

    def __init__(self, targets, root):
        self.targets, self.root = targets, root

    def check(self, u):
        pass

    def per_sample(self, u):
        return 0.5 * ((u - self.targets) @ self.root.to(u)).square().sum(-1)

    def grad(self, u):
        return self.hvp(u, u - self.targets)

    def hvp(self, u, v):
        return self.sqrt(u, self.sqrt_t(u, v))

    def sqrt(self, u, v):
        return v @ self.root.to(v).T

    def sqrt_t(self, u, v):
        return v @ self.root.to(v)

    def with_targets(self, targets):
        return Unusual(targets, self.root)


@pytest.mark.parametrize("root", [randn(4, 3, 3), torch.tensor([[1.0, 0, 0], [2, 0, 0], [0, 0, 3]]).double()])
def test_a_quadratic_loss_of_ones_own_is_stepped_implicitly(root):
    loss, u = Unusual(randn(0, 6, 3), root), randn(1, 6, 3)
    g = loss.grad(u)
    assert relative(loss.sqrt(u, loss.sqrt_inverse(u, g)), g) < 1e-12
    back = loss.sqrt_t(u, loss.sqrt_t_inverse(u, loss.sqrt_t(u, g)))
    assert relative(back, loss.sqrt_t(u, g)) < 1e-12
    fitted = js.fit(js.Objective(mlp(0), lambda net: net(randn(0, 6, 4)), loss), jumps=15)
    assert fitted.loss < 1e-10


def test_what_a_loss_was_made_from_can_be_overwritten():
    y, u = classes(0, 6, 3), randn(1, 6, 3)
    weights, by_class, mask = torch.rand(6).double() + 0.1, torch.rand(3).double() + 0.1, torch.ones(6).bool()
    positive = torch.rand(3).double() + 0.1
    made = [
        CrossEntropy(y, weights=weights, class_weights=by_class, mask=mask),
        mse(randn(2, 6, 3), weights=weights, mask=mask),
        Logistic(torch.ones(6, 3).double(), pos_weight=positive),
        Convex(FLAT["squares"], randn(2, 6, 3), weights=weights),
    ]
    before = [loss.to(u.float()).value(u.float()) for loss in made]
    weights[0], by_class[0], mask[1], positive[0] = 9.0, 9.0, False, 9.0
    after = [loss.to(u).value(u) for loss in made]
    for a, b in zip(before, after, strict=True):
        assert float(a) == pytest.approx(float(b), rel=1e-5)


def test_hessians_that_do_not_fit_are_looked_at_for_some_samples(monkeypatch):
    monkeypatch.setattr("jumpstart.losses.convex.ENTRIES", 30)
    loss = Convex(FLAT["squares"], randn(0, 6, 3)).to(randn(1, 6, 3))
    loss.check(randn(1, 6, 3))
    assert not loss.quadratic
    with pytest.raises(errors.NonConvexError):
        Convex(lambda u, y: -u.square().sum(), randn(0, 6, 3)).to(randn(1, 6, 3)).check(randn(1, 6, 3))

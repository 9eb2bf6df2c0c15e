"""Every linear operator against its dense twin: products, adjoints, matrices, dtypes; one table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import jumpstart as js
from jumpstart.errors import ShapeError
from jumpstart.linalg.operator import LinearOperator, Matrix
from jumpstart.linearization.linearize import at_query, linearize
from jumpstart.linearization.metric import Metric
from jumpstart.linearization.operators import GaussNewton, GraphJacobian, Jacobian, Kernel
from jumpstart.objectives.parts import Batch

from ..problems import classes, jacobian, mlp, randn, relative

N, P = 21, 255
D = 0.1 + torch.rand(P, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
METRICS = {
    "plain": Metric(),
    "metric": Metric(D.sqrt()),
    "decays": Metric(D.sqrt(), 0.1 + D),
    "one decay": Metric(None, 0.2),
}


@dataclass
class Case:
    """A model, its linearization, and J and B by reverse-mode autograd."""

    metric: Metric
    chunk: int | None = None
    query: int = 0

    def __post_init__(self) -> None:
        self.model, self.x = mlp(2), randn(0, 7, 4)
        self.objective = js.supervised(self.model, self.x, classes(1, 7, 3), "cross_entropy", chunk=self.chunk)
        self.lin = linearize(self.objective)
        self.points = randn(9, 5, 4)
        root = torch.ones(P).double() if self.metric.root is None else self.metric.root
        self.a = jacobian(self.model, self.x) * root
        self.a_query = jacobian(self.model, self.points) * root
        p = self.model(self.x).detach().softmax(-1)
        blocks = (torch.diag_embed(p) - p[:, :, None] * p[:, None, :]) / 7
        self.b = torch.block_diag(*blocks)
        self.w = torch.as_tensor(self.metric.decay, dtype=torch.float64).expand(P)

    def at_points(self) -> Jacobian:
        return Jacobian(at_query(self.lin, Batch(self.points)), self.metric)


OPERATORS: dict[str, tuple[Callable[[Case], LinearOperator], Callable[[Case], Tensor]]] = {
    "A": (lambda c: Jacobian(c.lin, c.metric), lambda c: c.a),
    "A by graphs": (lambda c: GraphJacobian(c.lin, c.metric), lambda c: c.a),
    "Aᵀ": (lambda c: Jacobian(c.lin, c.metric).T, lambda c: c.a.T),
    "K": (lambda c: Kernel(Jacobian(c.lin, c.metric)), lambda c: c.a @ c.a.T),
    "K_QS": (lambda c: Kernel(c.at_points(), Jacobian(c.lin, c.metric)), lambda c: c.a_query @ c.a.T),
    "K_QSᵀ": (lambda c: Kernel(c.at_points(), Jacobian(c.lin, c.metric)).T, lambda c: c.a @ c.a_query.T),
    "K by graphs": (lambda c: Kernel(GraphJacobian(c.lin, c.metric)), lambda c: c.a @ c.a.T),
    "G": (
        lambda c: GaussNewton(Jacobian(c.lin, c.metric), c.objective.loss),
        lambda c: c.a.T @ c.b @ c.a + torch.diag(c.w),
    ),
    "explicit": (lambda c: Matrix(c.a), lambda c: c.a),
}


@pytest.mark.parametrize("chunk", [None, 3])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", OPERATORS)
def test_products_are_those_of_the_dense_twin(name, metric, chunk):
    case = Case(METRICS[metric], chunk)
    make, dense = OPERATORS[name]
    operator, twin = make(case), dense(case)
    m, n = twin.shape
    assert (tuple(operator.shape), operator.dtype) == ((m, n), torch.float64)
    v, w, vs, ws = randn(4, n), randn(5, m), randn(6, n, 3), randn(7, m, 2)
    assert relative(operator @ v, twin @ v) < 1e-12
    assert relative(operator.T @ w, twin.T @ w) < 1e-12
    assert relative(operator @ vs, twin @ vs) < 1e-12
    assert relative(operator.T @ ws, twin.T @ ws) < 1e-12
    assert float(w @ (operator @ v)) == pytest.approx(float((operator.T @ w) @ v), rel=1e-10)
    assert relative(operator.dense(), twin) < 1e-12
    assert relative(operator.T.dense(), twin.T) < 1e-12
    assert operator.T.T @ v is not None and relative(operator.T.T @ v, twin @ v) < 1e-12
    assert (operator @ randn(8, n, 0)).shape == (m, 0)


@pytest.mark.parametrize("name", OPERATORS)
def test_what_is_multiplied_comes_back_in_the_operators_dtype(name):
    operator = OPERATORS[name][0](Case(Metric()))
    n = operator.shape[1]
    v = randn(4, n)
    found = operator @ v.float()
    assert found.dtype == torch.float64
    assert relative(found, operator @ v.float().double()) < 1e-15


@pytest.mark.parametrize("name", OPERATORS)
def test_shapes_that_do_not_fit_are_refused_by_name(name):
    operator = OPERATORS[name][0](Case(Metric()))
    m, n = operator.shape
    for wrong in (randn(0, n + 1), randn(0, 1, n) if n > 1 else randn(0, 2), randn(0, n, 2, 2), torch.zeros(())):
        with pytest.raises(ShapeError, match=rf"\({n},\)"):
            operator @ wrong
    with pytest.raises(ShapeError, match=rf"\({m},\)"):
        operator.T @ randn(0, m + 1)


def test_products_are_counted_in_gradient_evaluations():
    case = Case(Metric())
    a = Jacobian(case.lin)
    before = (case.lin.ledger.pushes, case.lin.ledger.pulls)
    _ = a @ randn(0, P), a.T @ randn(0, N), Kernel(a) @ randn(0, N)
    assert (case.lin.ledger.pushes - before[0], case.lin.ledger.pulls - before[1]) == (2, 2)
    graph = GraphJacobian(case.lin)
    before = (case.lin.ledger.pushes, case.lin.ledger.pulls)
    _ = graph @ randn(0, P), graph.T @ randn(0, N)
    assert (case.lin.ledger.pushes - before[0], case.lin.ledger.pulls - before[1]) == (1, 1)

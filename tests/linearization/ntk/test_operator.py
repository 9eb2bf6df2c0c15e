"""The matrix-free kernel against its dense twin."""

import pytest
import torch

import jumpstart as js
from jumpstart.linearization.linearize import at_query, linearize
from jumpstart.linearization.metric import Metric
from jumpstart.linearization.ntk import query_kernel, train_kernel
from jumpstart.linearization.ntk.operator import ntk_operator
from jumpstart.objectives.parts import Batch


@pytest.fixture
def lin():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 6), torch.nn.Tanh(), torch.nn.Linear(6, 2)).double()
    x, y = torch.randn(5, 3).double(), torch.randn(5, 2).double()
    return linearize(js.supervised(model, x, y))


def metrics(lin):
    return [Metric(), Metric(torch.rand(lin.theta.numel(), dtype=torch.float64) + 0.5)]


def test_train_kernel_as_an_operator(lin):
    for metric in metrics(lin):
        dense, operator = train_kernel(lin, metric), ntk_operator(lin, metric=metric)
        assert operator.shape == dense.shape
        torch.testing.assert_close(operator.to_dense(), dense, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(operator.diagonal(), dense.diagonal(), rtol=1e-12, atol=1e-12)
        v = torch.randn(10, dtype=torch.float64)
        torch.testing.assert_close(operator @ v, dense @ v, rtol=1e-12, atol=1e-12)


def test_query_kernel_and_its_transpose(lin):
    x = torch.randn(4, 3, dtype=torch.float64)
    for metric in metrics(lin):
        dense = query_kernel(lin, Batch(x), metric)
        operator = ntk_operator(at_query(lin, Batch(x)), lin, metric)
        torch.testing.assert_close(operator.to_dense(), dense, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(operator.mT.to_dense(), dense.T, rtol=1e-12, atol=1e-12)


def test_gpytorch_solves_with_it(lin):
    operator = ntk_operator(lin).add_jitter(1e-2)
    b = torch.randn(10, 1, dtype=torch.float64)
    torch.testing.assert_close(operator.solve(b), torch.linalg.solve(operator.to_dense(), b), rtol=1e-6, atol=1e-8)


def test_a_product_costs_one_push_and_one_pull(lin):
    before = (lin.ledger.pushes, lin.ledger.pulls)
    _ = ntk_operator(lin) @ torch.randn(10, dtype=torch.float64)
    assert (lin.ledger.pushes - before[0], lin.ledger.pulls - before[1]) == (1, 1)

"""Equations on domains: solutions leave no residual, one point and many agree, and so do jumps and plain torch."""

from __future__ import annotations

import math

import pytest
import torch
from torch.func import vmap

from experiments.collocation import PROBLEMS, peaked
from experiments.pinn import equations, formulas, high, solutions
from experiments.pinn.equations import Drawn, Equation
from jumpstart.demo import poisson

from ..problems import randn

EVERY = {**equations.EVERY, "peak": PROBLEMS["peak"].equation}
CLOSED = {
    "poisson": poisson.exact, "helmholtz": solutions.helmholtz, "heat": solutions.heat,
    "convection": solutions.convection, "kovasznay": solutions.kovasznay, "peak": peaked,
    "poisson5": high.waves, "poisson10": high.products, "heat10": high.fading,
}  # fmt: skip


def at_points(equation: Equation, net, count: int = 40):
    """Of each part the residual at one point, vmapped, and at many."""
    for part in equation.parts:
        rows = part.domain.points(count, 7)
        yield part, vmap(lambda row, part=part: part.point(net, row))(rows).reshape(-1), part.batch(net, rows)


@pytest.mark.parametrize("name", CLOSED)
def test_solutions_in_closed_form_leave_no_residual(name: str):
    exact = CLOSED[name]
    net = exact if name == "kovasznay" else lambda z: exact(z)[..., None]
    for part, one, many in at_points(EVERY[name], net):
        assert float(one.detach().abs().max()) * math.sqrt(part.weight) < 1e-10
        assert float(many.detach().abs().max()) * math.sqrt(part.weight) < 1e-10


@pytest.mark.parametrize("name", CLOSED)
def test_errors_are_relative_to_the_solution(name: str):
    exact = CLOSED[name]

    class Solution(torch.nn.Module):
        def forward(self, z):
            return 1.25 * exact(z).reshape(len(z), -1)

    assert EVERY[name].error(Solution()) == pytest.approx(0.25, rel=1e-12)


@pytest.mark.parametrize("name", EVERY)
def test_one_point_and_many_agree_and_so_do_jumps_and_plain_torch(name: str):
    equation = EVERY[name]
    model = equation.network(3)
    for part, one, many in at_points(equation, model):
        torch.testing.assert_close(one, many, rtol=1e-10, atol=1e-10, msg=part.name)
        assert float(many.detach().abs().max()) > 1e-4
    drawn, objective = equation.drawn(0, share=0.02), equation.objective(model, share=0.02)
    rows = drawn.residuals(model)
    torch.testing.assert_close(rows, objective.outputs(objective.theta()).reshape(-1), rtol=1e-10, atol=1e-10)
    assert 0.5 * float(rows.detach().square().sum()) == pytest.approx(objective.value(objective.theta()), rel=1e-12)
    assert objective.notes() == []
    slopes = torch.autograd.grad(0.5 * rows.square().sum(), list(model.parameters()))
    assert all(bool(slope.abs().sum() > 0) for slope in slopes[:-1])


@pytest.mark.parametrize(
    ("formula", "coefficients"),
    [
        (formulas.HEAT, {"u_xx": -0.1}), (formulas.CONVECTION, {"u_x": 30.0}),
        (formulas.BURGERS, {"u u_x": 1.0, "u_xx": -0.01 / math.pi}),
        (formulas.ALLEN_CAHN, {"u_xx": -1e-4, "u": -5.0, "u³": 5.0}), (formulas.KDV, {"u u_x": 1.0, "u_xxx": 0.000484}),
        (formulas.KURAMOTO_SIVASHINSKY, {"u u_x": 6.25, "u_xx": 0.390625, "u_xxxx": 0.00152587890625}),
    ],
)  # fmt: skip
def test_formulas_are_their_equations(formula: formulas.Formula, coefficients: dict[str, float]):
    """At e^t sin 2x + x, whose derivatives are written out here."""
    rows = randn(0, 20, 2)
    x, t = rows.unbind(1)
    grown, wave, turned = torch.exp(t), torch.sin(2 * x), torch.cos(2 * x)
    u, ux = grown * wave + x, 2 * grown * turned + 1
    terms = {
        "u": u, "u³": u**3, "u_x": ux, "u u_x": u * ux, "u_xx": -4 * grown * wave, "u_xxx": -8 * grown * turned,
        "u_xxxx": 16 * grown * wave,
    }  # fmt: skip
    expected = grown * wave + sum(factor * terms[term] for term, factor in coefficients.items())
    net = lambda z: (torch.exp(z[..., 1]) * torch.sin(2 * z[..., 0]) + z[..., 0])[..., None]  # noqa: E731
    torch.testing.assert_close(formula.batch(net, rows).detach(), expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(vmap(lambda row: formula.point(net, row))(rows), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", EVERY)
def test_references_lie_in_the_domain_and_begin_as_the_equation_says(name: str):
    equation = EVERY[name]
    points, exact = equation.reference()
    assert points.shape[1] == equation.parts[0].domain.dim and exact.shape == (
        len(points),
        3 if name == "kovasznay" else 1,
    )
    assert bool(exact.isfinite().all())
    by_name = {part.name: part for part in equation.parts}
    box = by_name["equation"].domain
    assert bool(box.contains(points).all())
    if name in ("burgers", "allen_cahn", "kdv", "kuramoto_sivashinsky"):
        first = points[:, 1] == 0
        assert int(first.sum()) == 256
        there = by_name["start"].batch(lambda _: exact[first], points[first])
        assert float(there.abs().max()) < 1e-12
        assert float(points[:, 1].max()) == pytest.approx(0.99 if name == "burgers" else box.high[1])


def test_points_are_renewed_evenly_or_where_the_residual_is_large():
    equation = EVERY["peak"]
    model = equation.network(0)
    drawn = equation.drawn(5, share=0.2)
    first = [rows.clone() for rows in drawn.points]
    far = lambda rows: float(((rows - torch.tensor([0.3, 0.6])).norm(dim=1) > 0.15).double().mean())  # noqa: E731
    drawn.renew(seed=1)
    evenly = [rows.clone() for rows in drawn.points]
    assert [len(rows) for rows in evenly] == [200, 40] == [len(rows) for rows in first]
    assert not any(torch.equal(a, b) for a, b in zip(evenly, first, strict=True))
    assert far(evenly[0]) == pytest.approx(1 - math.pi * 0.15**2, abs=0.02)
    drawn.renew(model, seed=1)  # at the peak Δu − f is large
    assert 1 - far(drawn.points[0]) > 1.8 * (1 - far(evenly[0]))
    size = lambda rows: float(equation.parts[0].batch(model, rows).detach().abs().mean())  # noqa: E731
    assert size(drawn.points[0]) > 2 * size(evenly[0])
    assert all(bool(part.domain.contains(rows).all()) for part, rows in zip(equation.parts, drawn.points, strict=True))
    other = equation.drawn(5, share=0.2)
    other.renew(model, seed=1)
    assert torch.equal(other.points[0], drawn.points[0])
    other.renew(model, seed=2)
    assert not torch.equal(other.points[0], drawn.points[0])
    assert isinstance(drawn, Drawn) and drawn.residuals(model).requires_grad

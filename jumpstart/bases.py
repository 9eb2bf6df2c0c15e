"""Ways to a basis: dense modes, Krylov, the span of given directions, recycled. Each returns a :class:`Basis`.

Source: docs/theory.md, sections 2 and 4.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from .errors import InputError, KernelError
from .flow.basis import Basis, Remainder, rounding, with_decay
from .linalg.lanczos import independent_rows, lanczos, lanczos_dual, orthogonalize
from .linearization.ntk import assemble
from .linearization.operators import Kernel, require_finite_derivatives
from .linearization.problem import LinearizedProblem
from .utils.brief import brief
from .utils.cost import EIGEN
from .utils.threads import many

FEW = 32  # outputs: the rounding of fewer is taken for theirs
SVD = 512  # the smaller side of a Jacobian up to which "auto" takes its singular values


def dense(
    problem: LinearizedProblem,
    *,
    route: str = "auto",
    rank: int | None = None,
    rcond: float | None = None,
    kernel: Tensor | None = None,
) -> Basis:
    """Every mode of K = A Aᵀ that stands above rounding (or the leading ``rank`` of them).

    Args:
        problem: what the function in ``js.solve(basis=…)`` is given.
        route: "kernel" forms K layer by layer and takes its eigenvectors; "svd" takes the SVD of the explicit
            Jacobian, which in float64 resolves singular values down to ε·σ_max instead of √ε·σ_max; "gram" takes the
            eigenvectors of the smaller Gram matrix of the explicit Jacobian; "auto" prefers the kernel where the
            outputs allow it and parameters outnumber outputs, then the SVD up to size 512, then the Gram matrix.
        rcond: modes with σ² ≤ rcond·σ²_max are rounding. By default ε times the size of the matrix that is decomposed,
            squared for the SVD; for a kernel that is made here, the larger of that square in the network's precision
            and of float64's ε times the size, since products are float64.
        kernel: K (N, N) itself, where it is known already (from an earlier solve, or made another way).

    Raises:
        KernelError: a kernel given is of another size, or not symmetric; or one has eigenvalues below −rounding.
        InputError: an unknown route.
    """
    lin, metric, a = problem.lin, problem.metric, problem.jacobian
    n, p = a.shape
    if kernel is not None:
        _require_kernel(kernel, n)
        route = "kernel"
    if route == "auto":
        if lin.layered and n <= p:
            route = "kernel"
        else:
            route = "svd" if min(n, p) <= SVD else "gram"
    if route not in ("kernel", "svd", "gram"):
        raise InputError(f"dense basis: route={brief(route)} is none of 'auto', 'kernel', 'svd', 'gram'.")
    eps = rounding(lin.u.dtype, n if route == "kernel" else min(n, p))
    shape = (-1, *lin.u.shape)
    if route == "kernel":
        squares, u = _eigh(assemble.train_kernel(lin, metric) if kernel is None else kernel)
        _require_semidefinite(squares, eps)
        if rcond is None:
            rcond = _resolved(squares, eps, lin.u.dtype) if kernel is None else eps
        keep = _keep(squares, rcond, rank)
        squares, u = squares[keep], u[:, keep].T
        sigma = squares.sqrt()[:, None]
        images, cotangents, vectors = u * sigma, u / sigma, None
    else:
        j = lin.jacobian().double()
        j = j if metric.root is None else j * metric.root.double()
        if route == "svd":
            u, sigma, vectors = _thin_svd(j)
            squares = sigma.square()
            keep = _keep(squares, eps**2 if rcond is None else rcond, rank)
            images, cotangents, vectors = (u[:, keep] * sigma[keep]).T, None, vectors[keep]
        elif n <= p:
            squares, u = _eigh(j @ j.T)
            keep = _keep(squares, eps if rcond is None else rcond, rank)
            sigma, u = squares[keep].sqrt()[:, None], u[:, keep].T
            images, cotangents, vectors = u * sigma, None, (u / sigma) @ j
        else:
            squares, v = _eigh(j.T @ j)
            keep = _keep(squares, eps if rcond is None else rcond, rank)
            vectors, cotangents = v[:, keep].T, None
            images = vectors @ j.T
        squares = squares[keep]
    basis = Basis(
        kind="dense",
        jacobian=a,
        modal=True,
        images=images.reshape(shape).to(torch.promote_types(lin.u.dtype, torch.float32)),
        vectors=vectors,
        cotangents=None if cotangents is None else cotangents.reshape(shape),
        squares=squares,
        complete=rank is None,
        route=route,
    )
    return with_decay(basis)


def _eigh(k: Tensor) -> tuple[Tensor, Tensor]:
    require_finite_derivatives(k)
    with many(9 * len(k) ** 3 / EIGEN["cpu"]):
        lam, u = torch.linalg.eigh(k.double())
    return lam.flip(0), u.flip(1)


def _require_kernel(kernel: Tensor, n: int) -> None:
    if kernel.shape != (n, n):
        raise KernelError(f"kernel of shape {tuple(kernel.shape)} for {n} outputs: it must be ({n}, {n}).")
    require_finite_derivatives(kernel)
    skew = float((kernel - kernel.T).abs().max() / kernel.abs().max().clamp_min(1e-300))
    if skew > torch.finfo(kernel.dtype).eps ** 0.5:
        raise KernelError(f"kernel is not symmetric ({skew:.1e} relative): give J D Jᵀ of one set of outputs.")


def _require_semidefinite(squares: Tensor, eps: float) -> None:
    low, high = float(squares.min()), float(squares.max())
    if low < -10 * eps * max(high, 0.0):
        raise KernelError(
            f"the kernel has a negative eigenvalue, {low:.3g} beside {high:.3g}, which is more than rounding: it is no "
            "J D Jᵀ. Solve in float64, or look for an operation in the model whose derivative is wrong."
        )


def _resolved(squares: Tensor, eps: float, dtype: torch.dtype) -> float:
    """Share of the largest eigenvalue of a kernel in float64 below which J is noise, or the products are.

    J is off by a few ε·σ_max (up to 5.5 seen), so that singular values are resolved as those of J itself; eigenvalues
    below zero show what else there is (passes that do not repeat to the bit, on a GPU).
    """
    if dtype in (torch.float16, torch.bfloat16):
        return eps
    n = len(squares)
    noise = rounding(dtype, max(n, FEW)) ** 2
    seen = 10 * max(0.0, -float(squares.min())) / max(float(squares.max()), torch.finfo(torch.float64).tiny)
    return min(eps, max(noise, rounding(torch.float64, n), seen))


def _keep(squares: Tensor, rcond: float, rank: int | None) -> Tensor:
    keep = squares > rcond * squares.max().clamp_min(0)
    keep &= squares > 0
    if rank is not None:
        keep &= torch.arange(squares.numel(), device=squares.device) < rank
    return keep


def _thin_svd(j: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """SVD by way of QR of the long side, several times cheaper when the matrix is far from square."""
    if j.shape[0] < j.shape[1]:
        v, s, uh = _thin_svd(j.T)
        return uh.T, s, v.T
    require_finite_derivatives(j)
    with many((4 * len(j) + 20 * j.shape[1]) * j.shape[1] ** 2 / EIGEN["cpu"]):
        q, r = torch.linalg.qr(j)
        u, s, vh = torch.linalg.svd(r)
    return q @ u, s, vh


def krylov(problem: LinearizedProblem, depth: int, *, side: str = "auto") -> Basis:
    """The Krylov space of AᵀBA (plus decay) from the gradient: ``depth`` products of one jvp and one vjp each.

    Source: docs/theory.md, section 4.

    Args:
        problem: as for :func:`dense`.
        side: "parameters" keeps k·(P + N) numbers and needs no network pass for a candidate step; "outputs" keeps
            2·k·N, and pulls back once a candidate; "auto" takes the outputs' side where P > 50·N.

    Raises:
        InputError: an unknown side, or weight decay on the outputs' side.
    """
    a, decays = problem.jacobian, problem.metric.decays
    n, p = a.shape
    if side == "auto":
        side = "outputs" if p > 50 * n and not decays else "parameters"
    if side == "outputs":
        if decays:
            raise InputError("weight decay acts outside the span of pulled-back outputs: use side='parameters'.")
        return _krylov_outputs(problem, depth)
    problem.require_symmetric("a Krylov basis")
    if side != "parameters":
        raise InputError(f"krylov: side={brief(side)} is none of 'auto', 'parameters', 'outputs'.")
    start = problem.gradient()
    require_finite_derivatives(start)
    if not bool((start != 0).any()):
        return _nothing(problem)
    product, images = _recording(problem)
    run = lanczos(product, start, depth)

    @functools.cache
    def remainder() -> tuple[float, float]:
        norm = float(run.remainder_norm)
        return norm, float(torch.linalg.vector_norm(a.image(run.remainder))) if norm else 0.0

    return with_decay(
        Basis(
            kind="krylov",
            jacobian=a,
            images=torch.stack(images[: run.depth]),
            vectors=run.vectors,
            cotangents=None,
            remainder=Remainder(remainder),
            is_krylov=True,
            route="parameters",
        )
    )


def _recording(problem: LinearizedProblem) -> tuple[Callable[[Tensor], Tensor], list[Tensor]]:
    """Products with G, and the list that the images A v are kept in."""
    g, images = problem.curvature, []

    def product(v: Tensor) -> Tensor:
        images.append(problem.jacobian.image(v))
        return g.pulled(v, images[-1])

    return product, images


def _nothing(problem: LinearizedProblem) -> Basis:
    """No direction at all: the gradient is exactly zero, and the flow stays where it is."""
    u, p = problem.lin.u, problem.jacobian.shape[1]
    images, vectors = u.new_zeros(0, *u.shape), problem.lin.theta.new_zeros(0, p)
    return Basis("krylov", problem.jacobian, images, vectors, None, complete=True, is_krylov=True)


def _krylov_outputs(problem: LinearizedProblem, depth: int) -> Basis:
    lin, loss, kernel = problem.lin, problem.loss, Kernel(problem.jacobian)
    shape = lin.u.shape

    def curvature(y: Tensor) -> Tensor:
        return loss.hvp(lin.u, y.reshape(shape)).reshape(-1)

    run = lanczos_dual(kernel.apply, curvature, loss.grad(lin.u).reshape(-1), depth)

    @functools.cache
    def remainder() -> tuple[float, float]:
        if not bool((run.rest != 0).any()):
            return 0.0, 0.0
        image = kernel @ run.rest
        norm = float(torch.dot(run.rest, image).clamp_min(0).sqrt())
        return norm, float(torch.linalg.vector_norm(image)) / norm if norm else 0.0

    return Basis(
        kind="krylov",
        jacobian=problem.jacobian,
        images=run.images.reshape(-1, *shape),
        vectors=None,
        cotangents=run.cotangents.reshape(-1, *shape),
        remainder=Remainder(remainder),
        is_krylov=True,
        route="outputs",
    )


def span(problem: LinearizedProblem, directions: Tensor, kind: str = "prefix") -> Basis:
    """The span of given parameter displacements: one jvp each, no vjp.

    The trajectory prefix is this with the optimizer's last updates; dependent directions are dropped.

    Args:
        problem: as for :func:`dense`. directions: (r, P). kind: what the basis calls itself.

    Raises:
        InputError: directions of another shape, or all zero.
    """
    return with_decay(_span(problem, directions, kind))


def _span(problem: LinearizedProblem, directions: Tensor, kind: str) -> Basis:
    p = problem.jacobian.shape[1]
    if directions.dim() != 2 or directions.shape[1] != p:
        raise InputError(f"directions must be (r, {p}), got {tuple(directions.shape)}.")
    rows = problem.metric.unscale(directions)
    lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    rows = (rows / lengths.clamp_min(torch.finfo(rows.dtype).tiny))[(lengths[:, 0] > 0)]
    q = independent_rows(rows, rows.new_ones(()))
    if q.shape[0] == 0:
        raise InputError("no direction given is different from zero: take a few optimizer steps first.")
    images = torch.stack([problem.jacobian.image(v) for v in q])
    return Basis(kind=kind, jacobian=problem.jacobian, images=images, vectors=q, cotangents=None)


def recycled(problem: LinearizedProblem, kept: Tensor, depth: int) -> Basis:
    """Directions kept from earlier jumps (r, P), and ``depth`` fresh Krylov vectors orthogonal to them.

    Costs r jvps and ``depth`` products. ``kept`` are displacements; they are rescaled to the present metric.

    Args:
        problem: as for :func:`dense`. kept: (r, P). depth: how many fresh ones.

    Raises:
        InputError: displacements of another shape, or all zero.
    """
    old = replace(_span(problem, kept, "recycled"), is_krylov=True)
    assert old.vectors is not None
    plain = replace(problem, metric=replace(problem.metric, decay=0.0))
    start = plain.gradient()
    fresh = orthogonalize(start, old.vectors)
    if not bool(torch.linalg.vector_norm(fresh) > torch.finfo(start.dtype).eps * torch.linalg.vector_norm(start)):
        return with_decay(old)
    product, images = _recording(plain)
    run = lanczos(product, start, depth, deflate=old.vectors)
    images = torch.cat([old.images, torch.stack(images[: run.depth])])
    return with_decay(replace(old, images=images, vectors=torch.cat([old.vectors, run.vectors])))

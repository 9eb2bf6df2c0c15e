"""The empirical neural tangent kernel in gpytorch: the end of training with error bars, its damping set by the data.

A Gaussian process whose mean is the network's present output and whose covariance is s·K + σ²I, K = J D Jᵀ, has the
posterior mean f(x) + K(x, X)(K + σ²/s I)⁻¹(y − f(X)): the linearized training run at t = ∞ with a pull back to the
present weights (``Solution.damped``). gpytorch's marginal likelihood chooses σ² and s.

Source: Jacot, Gabriel & Hongler 2018, arXiv:1806.07572 (the kernel); Rasmussen & Williams 2006, section 2.2 (the
posterior); docs/theory.md, section 2 (the run).
"""

# gpytorch types the attributes of its modules as Tensor | Module | None.
# pyright: reportOptionalMemberAccess=false, reportOptionalSubscript=false, reportOptionalCall=false
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import gpytorch
import torch
from gpytorch.constraints import Positive
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .errors import InputError, ShapeError
from .linearization import metric as metrics
from .linearization.consistency import require_deterministic
from .linearization.linearize import Linearization
from .linearization.metric import MetricLike
from .linearization.ntk import dense_kernel
from .linearization.ntk.operator import NTKOperator
from .objectives.objective import require_finite_outputs
from .objectives.parameters import ParameterSpace, Select
from .objectives.parts import Batch, Opaque, require_finite, require_tensor
from .objectives.pure import Net
from .objectives.snapshot import Witness, hold
from .utils.brief import brief
from .utils.guard import drawing, guarded
from .utils.progress import track

DENSE = 4096  # kernels of more than DENSE² entries are left matrix-free
KEPT = 3  # kernel matrices that are remembered
BLOCK = 32  # samples whose kernel is formed for the sake of its diagonal
RATIOS = [10.0**k for k in range(1, -7, -1)]  # of noise to signal, that a fit starts from
_LOG: dict[str, Any] = {"transform": torch.exp, "inv_transform": torch.log}


class Function:
    """One output of a network at the weights that it had when this was made, on gpytorch's flat inputs (n, d).

    Buffers, weights outside ``params`` and modes are those of that time, too; a model that has become another one since
    is refused.

    Args:
        model: any module. params: whose derivatives make the kernel; as in ``js.solve``.
        training: the mode to evaluate in, None for the present. output: which of a sample's outputs, if several.
        input_shape: shape of one sample as the model takes it; None for (d,).
        input_dtype: what the model takes; None for the dtype of its parameters.

    Raises:
        InputError and its kinds: no module, BatchNorm in train mode, inputs that do not fit, a model that has changed.
    """

    def __init__(
        self,
        model: nn.Module,
        params: Select = None,
        training: bool | None = None,
        output: int | None = None,
        input_shape: Sequence[int] | None = None,
        input_dtype: torch.dtype | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise InputError(f"model must be a torch.nn.Module, got {type(model).__name__}.")
        self.space = ParameterSpace(model, params)
        self.net, self.theta, self.output = Net(model, self.space, training), self.space.read(model), output
        self.params = self.space.unflatten(self.theta)
        self._watched = hold(self.net)
        self._witness: Witness | None = None
        self.shape = None if input_shape is None else tuple(input_shape)
        self.dtype = self.space.dtypes[0] if input_dtype is None else input_dtype
        for name, module in model.named_modules():
            if isinstance(module, _BatchNorm) and (module.training if training is None else training):
                raise InputError(f"{name!r} is BatchNorm in train mode, which couples the points: pass training=False.")

    @guarded(lambda self, *_, **__: self.net.model)
    def restored(self, x: Tensor) -> Tensor:
        """Inputs as the model takes them, from x (n, d); the first time the model is tried on two of them.

        Raises:
            ShapeError, InputError: inputs of another shape, or that require a gradient.
        """
        if x.dim() != 2:
            raise ShapeError(f"inputs {tuple(x.shape)} are not (n, d): flatten samples, and give their input_shape=.")
        if x.requires_grad:
            raise InputError("inputs require a gradient, which the kernel does not give: pass x.detach().")
        if self.shape is not None and math.prod(self.shape) != x.shape[1]:
            raise ShapeError(f"input_shape={self.shape} has {math.prod(self.shape)} entries, the inputs {x.shape[1]}.")
        given = x.to(self.dtype) if self.shape is None else x.reshape(-1, *self.shape).to(self.dtype)
        if self._witness is not None:
            self._witness.require_unchanged()
        elif len(x):
            few = given[:2].clone()
            lin = self.linearized(few)
            require_finite_outputs(lin.u)
            require_deterministic(lin)
            self._witness = Witness(self.net, (Batch(few),), self.theta, self._watched)
        return given

    def linearized(self, given: Tensor) -> Linearization:
        """The network linearized on inputs ``given``, (n, …) as :meth:`restored` makes them.

        Raises:
            ShapeError: the model cannot be evaluated on them.
        """
        try:
            return Linearization(self.net, [Opaque(lambda net: self._one(net(given)))], self.theta)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except RuntimeError as error:
            raise ShapeError(f"the model cannot be evaluated on inputs {tuple(given.shape)}: {error}") from error

    def call(self, params: dict[str, Tensor], given: Tensor) -> Tensor:
        """Outputs (n,) with parameters given by name."""
        return self._one(self.net.call(params, given))

    def _one(self, u: Any) -> Tensor:
        u = require_tensor(u)
        count = u.numel() // max(1, len(u)) if u.dim() else 0
        at = 0 if self.output is None and count == 1 else self.output
        if at is None or not 0 <= at < count:
            raise ShapeError(
                f"a GP has one output, the model {tuple(u.shape)}: pick one with output=, not {self.output}."
            )
        return u.reshape(len(u), -1)[:, at]


class NTKKernel(gpytorch.kernels.Kernel):
    """k(x, x′) = ∂f(x)/∂θ · D · ∂f(x′)/∂θ of a torch model, at the weights that it has now, without hyperparameters.

    A dense matrix, formed layer by layer; above ``DENSE``² entries a matrix-free operator. A ScaleKernel around it
    gives an output scale. The last few matrices are kept, so that steps on hyperparameters do not compute them again.
    There is no gradient with respect to inputs or weights, and weight decay in a metric plays no part.

    Args:
        params, metric: as in ``js.solve``.
        options: ``matrix_free``, True or False where the size should not decide; ``training``, ``output``,
            ``input_shape`` and ``input_dtype``, see :class:`Function`.

    Raises:
        InputError and its kinds: several outputs, BatchNorm in train mode, inputs that do not fit.

    Example:
        >>> kernel = NTKKernel(torch.nn.Linear(3, 1, bias=False))
        >>> x = torch.randn(4, 3)
        >>> torch.allclose(kernel(x).to_dense(), x @ x.T, atol=1e-5)
        True
    """

    has_lengthscale = False

    def __init__(self, model: nn.Module, params: Select = None, metric: MetricLike = None, **options: Any) -> None:
        super().__init__()
        self.matrix_free: bool | None = options.pop("matrix_free", None)
        self.function = f = Function(model, params, **options)
        self.metric = metrics.as_metric(metric, model, f.space)
        self._kept: list[tuple[Tensor, Tensor, Any]] = []

    @guarded(lambda self, *_, **__: self.function.net.model)
    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **_: Any) -> Any:
        """The kernel (n, m) of x1 (n, d) and x2 (m, d), a tensor or an operator; with ``diag`` its diagonal (n,)."""
        same, whole = _equal(x1, x2), next((k for a, b, k in self._kept if _equal(a, x1) and _equal(b, x2)), None)
        if diag:
            return whole.diagonal() if isinstance(whole, Tensor) else self._diagonal(x1, x2, same)
        if whole is None:
            whole = (self._operator if self.left_free(len(x1), len(x2)) else self._dense)(x1, x2, same)
            if same and isinstance(whole, Tensor):  # rounding leaves eigenvalues a little below zero
                n, small, tiny = len(x1), *(torch.finfo(d).eps for d in (self.function.space.dtype, torch.float64))
                whole.diagonal().add_(2 * (small * n**0.5 + tiny * n) * whole.diagonal().mean() if n else 0)
        self._kept = [(x1.clone(), x2.clone(), whole), *(entry for entry in self._kept if entry[2] is not whole)][:KEPT]
        return whole

    def left_free(self, n: int, m: int) -> bool:
        """Whether a kernel (n, m) is an operator."""
        return n * m > 0 and (n * m > DENSE**2 if self.matrix_free is None else self.matrix_free)

    def _dense(self, x1: Tensor, x2: Tensor, same: bool) -> Tensor:
        f, root = self.function, self.metric.root
        if not len(x1) or not len(x2):
            return x1.new_zeros(len(x1), len(x2))
        inputs = f.restored(x1), None if same else f.restored(x2)
        d = None if root is None else f.space.unflatten(root.square())
        return dense_kernel(f.call, f.params, *inputs, metric=d).to(x1.dtype)

    def _diagonal(self, x1: Tensor, x2: Tensor, same: bool) -> Tensor:
        pairs = list(zip(x1.split(BLOCK), x2.split(BLOCK), strict=True))
        return torch.cat([self._dense(*pair, same).diagonal() for pair in track(pairs, label="kernel: diagonal")])

    def _operator(self, x1: Tensor, x2: Tensor, same: bool) -> NTKOperator:
        left = self.function.linearized(self.function.restored(x1))
        right = left if same else self.function.linearized(self.function.restored(x2))
        return _Cast(left.u.to(x1.dtype), left=left, right=right, metric=self.metric)


class _Cast(NTKOperator):
    """The matrix-free kernel in the dtype of its anchor, whatever the network's."""

    def _product(self, w: Tensor) -> Tensor:
        return super()._product(w.to(self.right.u.dtype)).to(w.dtype)

    def _diagonal(self) -> Tensor:
        return super()._diagonal().to(self.dtype)

    def _transpose_nonbatch(self) -> NTKOperator:
        return _Cast(self.right.u.to(self.dtype), left=self.right, right=self.left, metric=self.metric)


def _equal(a: Tensor, b: Tensor) -> bool:
    return (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device) and torch.equal(a, b)


class NetworkMean(gpytorch.means.Mean):
    """The network's output as a mean function, so that the process is about what training adds to it."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    @guarded(lambda self, *_, **__: self.function.net.model)
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Outputs (n,) at x (n, d)."""
        return self.function.call(self.function.params, self.function.restored(x)).to(x.dtype)


class EndpointGP(gpytorch.models.ExactGP):
    """Where (linearized, damped) training would end, with the uncertainty that is left: see the module's docstring.

    An ordinary gpytorch model in float64, with ``likelihood``, ``mean_module`` and ``covar_module``.

    Args:
        inputs: (n, …) as the model takes them. targets: (n,) or (n, 1).
        noise, scale: σ² and s to begin with; :func:`fit` chooses them.
        options: ``params``, ``metric``, ``training``, ``output``, ``matrix_free``, as for :class:`NTKKernel`.

    Raises:
        InputError and its kinds: quoting the offending input.

    Example:
        >>> x = torch.randn(20, 3)
        >>> gp = EndpointGP(torch.nn.Linear(3, 1), x, x.sum(1) + 0.1 * torch.randn(20))
        >>> evidence = fit(gp)
        >>> gp.predict(x[:5]).variance.shape
        torch.Size([5])
    """

    @guarded(lambda _, model, *__, **___: model)
    def __init__(
        self, model: nn.Module, inputs: Tensor, targets: Tensor, noise: float = 1e-2, scale: float = 1.0, **options: Any
    ) -> None:
        if not (isinstance(inputs, Tensor) and isinstance(targets, Tensor)):
            raise InputError(f"inputs and targets must be tensors, got {type(inputs)} and {type(targets)}.")
        require_finite(inputs, "inputs")
        require_finite(targets, "targets")
        n = len(inputs) if inputs.dim() else 0
        if n == 0 or targets.numel() != n or targets.shape[:1] != (n,):
            raise ShapeError(f"inputs {tuple(inputs.shape)}, targets {tuple(targets.shape)}: give one target a sample.")
        kernel = NTKKernel(model, input_shape=inputs.shape[1:], input_dtype=inputs.dtype, **options)
        f, x = kernel.function, inputs.reshape(n, -1).to(torch.float64, copy=True)
        level = float(kernel(x[:BLOCK], diag=True).mean())
        if not 0 < level < math.inf:
            raise InputError(
                f"the kernel is {level}: outputs that no weight moves, or derivatives that are not finite."
            )
        likelihood = gpytorch.likelihoods.GaussianLikelihood(noise_constraint=Positive(**_LOG)).double()
        super().__init__(x, targets.reshape(n).to(torch.float64, copy=True), likelihood)
        self.function, self.level, self.mean_module = f, level, NetworkMean(f)
        self.covar_module = gpytorch.kernels.ScaleKernel(kernel, outputscale_constraint=Positive(**_LOG)).double()
        self.to(x.device)
        self.set(noise, scale)

    def forward(self, x: Tensor) -> Any:
        """The prior at x (n, d), as gpytorch asks for it."""
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))

    def set(self, noise: float, scale: float) -> None:
        """Set σ² and s, and forget what was predicted with others."""
        if not (0 < noise < math.inf and 0 < scale < math.inf):
            raise InputError(f"noise={brief(noise)}, scale={brief(scale)}: both must be positive and finite.")
        both = torch.tensor([noise, scale], dtype=torch.float64, device=self.train_inputs[0].device)
        self.likelihood.noise, self.covar_module.outputscale = both  # gpytorch makes float32 of plain numbers
        self.prediction_strategy = None

    @property
    def noise(self) -> float:
        """σ², the variance of the targets around the function."""
        return self.likelihood.noise.item()

    @property
    def scale(self) -> float:
        """s, the variance of the weights' displacement in units of the metric."""
        return self.covar_module.outputscale.item()

    @property
    def damping(self) -> float:
        """The rate for ``js.solve(…, loss="mse").damped(rate)`` whose t = ∞ is this posterior mean: 2σ²/(s n)."""
        return 2 * self.noise / (self.scale * len(self.train_targets))

    def solver(self) -> Any:
        """A context in which a dense kernel is factorized, not iterated on; gpytorch alone turns to that at n = 800."""
        n, kernel, limit = len(self.train_targets), self.covar_module.base_kernel, gpytorch.settings.max_cholesky_size
        return limit(max(limit.value(), 0 if kernel.left_free(n, n) else n))

    @guarded(lambda self, *_, **__: self.function.net.model)
    def predict(self, x: Tensor) -> Any:
        """The posterior of the noise-free function at x (m, …): a gpytorch MultivariateNormal in float64.

        It has ``mean``, ``variance`` and ``confidence_region()``; ``gp.likelihood(gp.predict(x))`` adds the noise.
        """
        if not isinstance(x, Tensor) or x.shape[1:] != self.function.shape:
            raise ShapeError(
                f"query points must be a tensor of samples of shape {self.function.shape}, as inputs were."
            )
        require_finite(x, "query points")
        self.eval()
        with torch.no_grad(), self.solver(), gpytorch.settings.debug(False):  # training points may be asked about, too
            return self(x.reshape(len(x), -1).double())


@guarded(lambda gp, **_: gp.function.net.model)
def fit(gp: EndpointGP, *, steps: int = 50) -> float:
    """Choose σ² and s of ``gp`` by gpytorch's marginal likelihood: L-BFGS from the best of a few ratios.

    Returns log p(y). The kernel is computed once; a step costs a Cholesky factorization (matrix-free, conjugate
    gradients and a random estimate of the determinant, the same at every step). A hyperparameter whose
    ``requires_grad`` is off stays.

    Raises:
        InputError: ``steps`` < 1, nothing is free, or the network meets its targets exactly.
    """
    free, x, y = [p for p in gp.parameters() if p.requires_grad], gp.train_inputs[0], gp.train_targets
    if not isinstance(steps, int) or steps < 1 or not free:
        raise InputError(f"fit(steps={brief(steps)}) with {len(free)} free hyperparameters: at least 1 of both.")
    gp.train()
    mll, residual = gpytorch.mlls.ExactMarginalLogLikelihood(gp.likelihood, gp), y - gp.mean_module(x)
    if not bool((residual != 0).any()):
        raise InputError("fit: the network meets every target exactly, so that there is nothing to estimate.")

    def closure() -> Tensor:
        torch.manual_seed(0)
        gp.zero_grad()
        loss: Any = -mll(gp(x), y)
        loss.backward()
        return loss

    def reached() -> tuple[float, list[Tensor]]:
        loss = closure().item()
        return loss if math.isfinite(loss) else math.inf, [p.detach().clone() for p in free]

    @torch.no_grad()
    def best() -> float:
        loss, values = min(tried, key=lambda pair: pair[0])
        for p, value in zip(free, values, strict=True):
            p.copy_(value)
        return loss

    drawing()  # a random estimate of the determinant, by seeds of the global generator
    with gp.solver():
        tried = [reached()]
        for ratio in [ratio * float(gp.level) for ratio in RATIOS] if len(free) == 2 else ():
            gp.set(ratio * gp.scale, gp.scale)
            with torch.no_grad():  # the best scale for this ratio is known
                torch.manual_seed(0)
                spread = float(gp.likelihood(gp(x)).lazy_covariance_matrix.inv_quad(residual[:, None])) / len(y)
            gp.set(spread * gp.noise, spread * gp.scale)
            tried.append(reached())
        best()
        torch.optim.LBFGS(free, max_iter=steps, tolerance_change=1e-12, line_search_fn="strong_wolfe").step(closure)
        tried.append(reached())
        loss = best()
    gp.zero_grad()
    gp.eval()
    return -loss * len(y)

"""What is being trained: a model, its outputs, and a convex loss on them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import EmptyBatchError, InputError, NonFiniteError, NoParametersError, ShapeError
from ..losses.base import Loss
from ..losses.named import as_loss
from ..utils.autodiff import pullback
from ..utils.brief import brief
from ..utils.cost import Counting, Work
from ..utils.guard import guarded
from ..utils.interrupts import uninterrupted
from .diagnosis import LOSS, translated
from .door import require_traceable
from .outputs import Chosen, Output
from .parameters import ParameterSpace, Select
from .parts import Batch, Opaque, Part, join, require_finite, taken
from .pure import Bound, Net


class Consistent(dict[int, bool]):
    """Subjects (``linearization.subject``) whose derivatives were found right, and whether still weights respond.

    Shared by objectives that differ in their data. A copy is of other modules, and starts empty.

    Attributes:
        repeats: modes in which the model was found to answer twice the same -> the work of a forward pass, its rows.
    """

    MANY = 64  # sequences of every length are subjects of their own

    def __init__(self) -> None:
        super().__init__()
        self.repeats: dict[tuple[bool, ...], tuple[Work, int]] = {}

    def learn(self, subject: int, still_responds: bool) -> None:
        if len(self) >= self.MANY:
            self.clear()
        self[subject] = still_responds

    def __reduce__(self) -> Any:
        return type(self), ()


class Objective:
    """A model, the outputs that are trained, and a convex loss Φ(u) on them.

    Args:
        model: any module.
        outputs: function of the model as a pure callable ``net`` that returns a tensor u (n, …); for instance
            ``lambda net: net(chosen) - net(rejected)``.
        loss: a :class:`jumpstart.Loss` with its targets bound to it.
        params: which parameters move (names, patterns, or a function); None for all that require a gradient.
        training: evaluate the model in this mode and put its own back; None leaves every submodule as it is.

    Raises:
        InputError and its kinds: quoting the offending input; see ``jumpstart.errors``.
        OutputTypeError: the outputs are no tensor.
    """

    def __init__(
        self,
        model: nn.Module,
        outputs: Callable[[Callable[..., Any]], Tensor],
        loss: Loss,
        *,
        params: Select = None,
        training: bool | None = None,
    ) -> None:
        if not isinstance(loss, Loss):
            raise InputError(
                f"js.Objective needs a js.Loss with its targets in it, got {brief(loss)}: for instance "
                "js.losses.mse(targets), js.losses.CrossEntropy(targets) or js.losses.Convex(fn, targets)."
            )
        self._build(model, [Opaque(outputs)], loss, params, training, None)

    @classmethod
    def from_parts(
        cls,
        model: nn.Module,
        parts: Sequence[Part],
        loss: Loss | Callable[[Tensor], Loss],
        params: Select = None,
        training: bool | None = None,
        select: Callable[[Any], Tensor] | None = None,
    ) -> Objective:
        """An objective from explicit parts; ``loss`` may be built from the outputs once they are known.

        Args:
            select: what is trained of what the model returns (``outputs.Chosen``); None for all of it.
        """
        self = cls.__new__(cls)
        self._build(model, parts, loss, params, training, select)
        return self

    @guarded(lambda _, model, *__, **___: model)
    def _build(
        self,
        model: nn.Module,
        parts: Sequence[Part],
        loss: Loss | Callable[[Tensor], Loss],
        params: Select,
        training: bool | None,
        select: Callable[[Any], Tensor] | None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise InputError(f"model must be a torch.nn.Module, got {type(model).__name__}.")
        require_traceable(model)
        self.model, self.parts = model, tuple(parts)
        self.params, self.training = params, training
        self.space = ParameterSpace(model, params)
        require_traceable(model, self.space.names)
        self.net = Net(model, self.space, training, select)
        self.checked: tuple[bool, ...] | None = None  # modes in which the model was found to be one function
        self.consistent = Consistent()  # what its derivatives were found right for
        self.still_responds = False  # to weights that get no gradient (a padding row); found then
        self.kink: tuple[float, tuple[int, ...]] = (0.0, ())  # share of the response, and its rows; found then
        self.told = False  # of kinks
        self.work = Work()  # of a forward pass, counted when it is checked
        theta = self.theta()
        self.prepare(theta)
        with Counting() as counted:
            u = self.outputs(theta)
        self.net.learn(counted, u)
        if not isinstance(loss, Loss):
            with translated("the loss", LOSS):
                loss = loss(u)
        if u.dim() == 0:
            raise ShapeError("the outputs are a single number without a sample dimension: return shape (n, …).")
        if u.numel() == 0:
            raise EmptyBatchError(f"the outputs have shape {tuple(u.shape)}: there is nothing to train on.")
        if not bool(torch.isfinite(u).all()):
            raise NonFiniteError(self._not_finite(theta))
        self.loss, self.shape = _tried(loss, u), u.shape

    def theta(self) -> Tensor:
        """The model's present weights as a fresh vector (P,)."""
        return self.space.read(self.model)

    def require_current(self) -> None:
        """Raise where the model no longer has the parameters that were free to move when the objective was made.

        Raises:
            InputError: names those that are gone, of another shape, or (where none were asked for) frozen since.
        """
        present = dict(self.model.named_parameters())
        space, other = self.space, []
        for name, shape in zip(space.names, space.shapes, strict=True):
            if name not in present or present[name].shape != shape:
                other.append(name)
            elif self.params is None and not present[name].requires_grad:
                other.append(f"{name} (frozen)")
        if other:
            raise InputError(
                f"the model has changed since the objective was made: {other[:5]} are gone, of another shape, or "
                "frozen. Make the objective anew."
            )

    def prepare(self, theta: Tensor) -> None:
        """Let every part find its fastest way at weights θ (P,), and notice where that is out of date."""
        for part in self.parts:
            with part.translated(self.model):
                part.prepare(self.net, theta)

    @guarded(lambda self, *_, **__: self.model)
    @torch.no_grad()
    def outputs(self, theta: Tensor) -> Tensor:
        """u (n, …) at weights θ (P,); one forward pass, the model is left alone."""
        return join(self._rows(theta))

    def _rows(self, theta: Tensor) -> list[Tensor]:
        net, found = self.net.bind(theta), []
        for part in self.parts:
            with part.translated(self.model):
                found.append(part.outputs(net))
        return found

    @guarded(lambda self, *_, **__: self.model)
    @torch.no_grad()
    def by_part(self, theta: Tensor) -> list[Tensor]:
        """The outputs (n_i, …) of each part (a term, a chunk of a batch) at weights θ (P,), in order."""
        self.prepare(theta)
        return self._rows(theta)

    def _not_finite(self, theta: Tensor) -> str:
        """Says which part is not finite at θ, and where."""
        for i, (part, u) in enumerate(zip(self.parts, self.by_part(theta), strict=True)):
            bad = ~torch.isfinite(u).reshape(len(u), -1).all(1)
            if not bool(bad.any()):
                continue
            row = int(bad.nonzero()[0])
            return (
                f"{int(bad.sum())} of {len(u)} outputs of {part.name or f'part {i}'} are NaN or infinite at the "
                f"present weights, the first at {part.place(row, len(u))}: there is nothing to linearize; check the "
                "inputs' scale, the weights, and divisions, roots and logarithms in the residual."
            )
        return "the outputs are not finite."

    @guarded(lambda self, *_, **__: self.model)
    def value(self, theta: Tensor) -> float:
        """Φ at weights θ (P,)."""
        self.prepare(theta)
        return float(self.loss.value(self.outputs(theta)))

    @guarded(lambda self, *_, **__: self.model)
    def gradient(self, theta: Tensor) -> tuple[float, Tensor]:
        """Φ and ∇_θ Φ (P,) at weights θ; one gradient evaluation."""
        self.prepare(theta)
        total, grads, at = 0.0, torch.zeros_like(theta), 0
        if len(self.parts) == 1:
            with self.parts[0].translated(self.model):
                grad, total_t = torch.func.grad_and_value(
                    lambda th: self.loss.value(self.parts[0].outputs(self.net.bind(th)))
                )(theta)
            return float(total_t.detach()), grad
        u = self.outputs(theta)
        g, total = self.loss.grad(u), float(self.loss.value(u))
        for part in self.parts:
            with part.translated(self.model):
                rows, pull = pullback(lambda th, part=part: part.outputs(self.net.bind(th)), theta)
                grads = grads + pull(g[at : at + rows.shape[0]])
            at += rows.shape[0]
        return total, grads

    @guarded(lambda self, *_, **__: self.model)
    def evaluate(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Φ, ∇_θ Φ (P,) and the outputs (n, …) at weights θ, in one pass forwards and one backwards.

        The backward pass is the one that a training loop takes, without torch.func; what is not finite is returned.
        """
        self.prepare(theta)
        if len(self.parts) == 1:
            return self._at_once(self.parts[0], theta)
        u = self.outputs(theta)
        (value, g), at, gradient = self._sloped(u), 0, torch.zeros_like(theta)
        for part in self.parts:
            rows, pull = self._pulled(part, theta)
            gradient, at = gradient + pull(g[at : at + len(rows)]), at + len(rows)
        return value, gradient, u

    def _at_once(self, part: Part, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Φ, ∇_θ Φ and the outputs, the model's weights swapped once."""
        leaf = theta.detach().clone().requires_grad_()
        with torch.enable_grad():
            params = self.space.unflatten(leaf)

        def passes() -> tuple[Tensor, Tensor, Tensor]:
            u = self._outputs_of(part, params)
            value, g = self._sloped(u)
            u.backward(g, inputs=[leaf])
            assert leaf.grad is not None
            return value, leaf.grad, u.detach()

        with part.translated(self.model):
            return self.net.within(params, passes)

    def _outputs_of(self, part: Part, params: dict[str, Tensor]) -> Tensor:
        with torch.enable_grad():
            u = part.outputs(Bound(self.net, params))
        if not u.requires_grad:
            raise NoParametersError("the outputs depend on none of the parameters that move: nothing to train.")
        return u

    def _sloped(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Φ and ∇Φ at outputs u by one pass through the loss, as the loop takes it."""
        with translated("the loss", LOSS), torch.enable_grad():
            leaf = u.detach().requires_grad_()
            value = self.loss.value(leaf)
            (g,) = torch.autograd.grad(value, [leaf])
        return value.detach(), g

    def _pulled(self, part: Part, theta: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """A part's outputs at θ (P,), and Jᵀ of a cotangent, once."""
        leaf = theta.detach().clone().requires_grad_()
        with part.translated(self.model), torch.enable_grad():
            params = self.space.unflatten(leaf)
            u = self._outputs_of(part, params)

        def pull(g: Tensor) -> Tensor:
            with part.translated(self.model):
                self.net.within(params, lambda: u.backward(g, inputs=[leaf]))
            assert leaf.grad is not None
            return leaf.grad

        return u.detach(), pull

    def move(self, theta: Tensor, target: Tensor, follow: Callable[[], None]) -> None:
        """Move the model's weights from θ to a target (P,) and call ``follow``; they go back to θ if that fails."""
        with uninterrupted():
            try:
                self.space.write(self.model, target)
                follow()
            except BaseException:
                self.space.write(self.model, theta)
                raise

    def notes(self) -> list[str]:
        """What is slower than it could be, and why, as far as it has been met: a sentence each, for people."""
        found = [f"{part.name}: {note}" if part.name else note for part in self.parts for note in part.notes()]
        return list(dict.fromkeys(found))  # chunks of a batch say the same

    def subset(self, params: Select) -> Objective:
        """The same objective with other parameters free to move."""
        found = type(self).from_parts(self.model, self.parts, self.loss, params, self.training, self.net.select)
        found.consistent = self.consistent
        return found


def _tried(loss: Loss, u: Tensor) -> Loss:
    """The loss on the outputs' device and dtype, checked, and differentiated once: apart from the model.

    Raises:
        UntraceableError, EvaluationError: it cannot be evaluated, batched or differentiated; its own named errors.
    """
    with translated("the loss", LOSS):
        if taken(loss.targets) is not loss.targets:
            loss = copy.copy(loss)
            loss.targets = taken(loss.targets)
        loss = loss.to(u)
        loss.check(u)
        loss.grad(u)
        loss.hvp(u, u)
    return loss


def require_finite_outputs(u: Tensor) -> None:
    """Raise if the network's outputs are not finite.

    Raises:
        NonFiniteError: counts them.
    """
    if not bool(torch.isfinite(u).all()):
        bad = int((~torch.isfinite(u)).sum())
        raise NonFiniteError(
            f"{bad} of {u.numel()} outputs are NaN or infinite at the present weights: there is nothing to "
            "linearize; check the inputs' scale and the weights."
        )


def supervised(
    model: nn.Module,
    inputs: Any,
    targets: Tensor | None = None,
    loss: str | Callable[[Tensor, Tensor], Tensor] | Loss = "mse",
    *,
    params: Select = None,
    chunk: int | None = None,
    training: bool | None = None,
    outputs: Output = None,
    weights: Tensor | None = None,
    mask: Tensor | None = None,
    class_weights: Tensor | None = None,
    ignore_index: int | None = None,
    label_smoothing: float | None = None,
    pos_weight: Tensor | float | None = None,
    delta: float | None = None,
) -> Objective:
    """Outputs of a model on a batch of inputs against targets, under a named loss.

    Every named loss is torch's own with reduction "mean". With ``weights`` or a ``mask`` that mean is Σ w ℓ / Σ w over
    the entries that count; with ``class_weights`` and ``ignore_index`` it is the one of ``F.cross_entropy``.

    Args:
        model: any module. params: which of its parameters move, by names, patterns or a function; None for all that
            require a gradient. training: the mode to evaluate in; None leaves every submodule as it is.
        inputs: a tensor (n, …), a tuple of them (``model(*inputs)``) or any mapping (``model(**inputs)``).
        targets: (n, …) of the outputs' shape; for "cross_entropy" integer classes of the outputs' shape without its
            last dimension, which holds the classes, or probabilities of the whole shape.
        loss: "mse", "huber", "poisson" (counts; outputs are log rates), "cross_entropy", "logistic" or "multi_label"
            (labels from 0 to 1), a convex smooth function of ONE sample (outputs, target) -> scalar, one of torch's
            own (``nn.CrossEntropyLoss(weight=W)``), or a js.Loss.
        chunk: evaluate at most this many samples at a time, to bound memory; None for all at once.
        outputs: which tensor of what the model returns is trained: a name ("logits"), a place in a tuple, or a
            function of it; None where it returns just that tensor.
        weights: (n,) how much each sample counts, ≥ 0.
        mask: targets that count, True or 1; of their shape or (n,). Targets may hold anything elsewhere, NaN too.
        class_weights, ignore_index, label_smoothing: of "cross_entropy", as torch's.
        pos_weight: of "logistic" and "multi_label", as torch's. delta: of "huber", as torch's (1 by default).

    Raises:
        InputError and its kinds: quoting the offending input.

    Example:
        >>> objective = supervised(torch.nn.Linear(3, 1), torch.randn(8, 3), torch.randn(8, 1))
        >>> objective.shape
        torch.Size([8, 1])
    """
    if chunk is not None and (not isinstance(chunk, int) or chunk < 1):
        raise InputError(f"chunk={brief(chunk)}: give a number of samples of at least 1, or None.")
    batch, targets = Batch(inputs), taken(targets)
    require_finite(inputs, "inputs")
    if isinstance(loss, Loss) and targets is not None:
        raise InputError("supervised: a js.Loss holds its targets already; pass targets=None beside it.")
    bound = as_loss(
        loss, targets, weights=weights, mask=mask, class_weights=class_weights, ignore_index=ignore_index,
        label_smoothing=label_smoothing, pos_weight=pos_weight, delta=delta,
    )  # fmt: skip
    if bound.targets.dim() == 0 or bound.targets.shape[0] != batch.size:
        raise ShapeError(f"{batch.size} inputs but targets of shape {tuple(bound.targets.shape)}: one row a sample.")
    parts = [batch] if chunk is None or chunk >= batch.size else batch.split(chunk)
    if len(parts) > 1 and isinstance(model, nn.Module) and training is not False:
        coupled = [name for name, m in model.named_modules() if isinstance(m, _BatchNorm) and (training or m.training)]
        if coupled:
            raise InputError(
                f"chunk={chunk}: {coupled[0]!r} is BatchNorm in train mode, whose outputs depend on who shares the "
                "chunk; evaluate in eval mode (training=False), or leave chunk out."
            )
    return Objective.from_parts(model, parts, bound, params, training, None if outputs is None else Chosen.of(outputs))


def require_objective(objective: object, who: str) -> None:
    """Raise for what is no objective."""
    if not isinstance(objective, Objective):
        raise InputError(
            f"{who} needs a js.Objective (see js.supervised and js.residual), got {type(objective).__name__}."
        )

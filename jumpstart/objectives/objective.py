"""What is being trained: a model, its outputs, and a convex loss on them."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..distributed.sharded import followed, refreshed
from ..distributed.shards import Shards
from ..distributed.world import World
from ..distributed.wrapped import entry, gathered, joined, require_same_program
from ..errors import EmptyBatchError, InputError, NonFiniteError, NoParametersError, ShapeError
from ..losses.base import Loss
from ..losses.named import as_loss
from ..utils.autodiff import pullback
from ..utils.brief import brief
from ..utils.cost import Counting, Work
from ..utils.guard import guarded
from ..utils.interrupts import uninterrupted
from ..utils.memory import allowance
from .diagnosis import LOSS, translated
from .door import require_traceable
from .outputs import Chosen, Output
from .parameters import ParameterSpace, Select
from .parts import Batch, Opaque, Part, empty, join, leaves, require_finite, taken
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
        group: a process group over which the rows of the outputs are spread: ``outputs`` returns those of this process,
            the loss is of all of them, in the order of ranks (its targets by ``js.distributed.gathered``). See
            docs/distributed.md.

    Attributes:
        world: the processes of the group, or None. shards: which rows each computes, or None. parts: what this process
            evaluates. whole: what the outputs are made of, as far as this process knows.

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
        group: Any = None,
    ) -> None:
        model, world = joined(model, group)
        with entry(world, "js.Objective"):
            if not isinstance(loss, Loss):
                raise InputError(
                    f"js.Objective needs a js.Loss with its targets in it, got {brief(loss)}: for instance "
                    "js.losses.mse(targets), js.losses.CrossEntropy(targets) or js.losses.Convex(fn, targets)."
                )
            if world is not None:
                require_same_program(world, model, {"the loss": type(loss).__name__, "training": training})
            self._build(model, [Opaque(outputs)], loss, params, training, None, world)

    @classmethod
    def from_parts(
        cls,
        model: nn.Module,
        parts: Sequence[Part],
        loss: Loss | Callable[[Tensor], Loss],
        params: Select = None,
        training: bool | None = None,
        select: Callable[[Any], Tensor] | None = None,
        world: World | None = None,
        whole: Sequence[Part] | None = None,
    ) -> Objective:
        """An objective from explicit parts; ``loss`` may be built from the outputs once they are known.

        Args:
            select: what is trained of what the model returns (``outputs.Chosen``); None for all of it.
            world: processes that the outputs are spread over; the parts are this one's. whole: what the outputs are
                made of on all of them, where that is known; each of its parts has a share in ``parts``, or none.
        """
        self = cls.__new__(cls)
        self._build(model, parts, loss, params, training, select, world, whole)
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
        world: World | None = None,
        whole: Sequence[Part] | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise InputError(f"model must be a torch.nn.Module, got {type(model).__name__}.")
        require_traceable(model)
        self.model, self.parts = model, tuple(parts)
        self.whole = self.parts if whole is None else tuple(whole)
        self.world, self.params, self.training = world, params, training
        self.shards: Shards | None = None
        if world is not None:
            _require_samples_apart(model, training)
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
        u = self._first(theta)
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

    @property
    def chunked(self) -> bool:
        """Whether outputs are asked for in several parts, so that a gradient takes a forward pass more."""
        return len(self.parts) > 1 if self.shards is None else self.shards.chunked

    def _first(self, theta: Tensor) -> Tensor:
        """The outputs, asked for the first time: what they draw, and over which processes they are spread."""
        if self.world is None:
            with Counting() as counted:
                u = self.outputs(theta)
            self.net.learn(counted, u)
            return u

        def local() -> list[Tensor]:
            with Counting() as counted:
                found = self._rows(theta)
            if found:
                self.net.learn(counted, join(found))
            return found

        found = self.world.attempt("the first outputs", torch.no_grad()(local))
        pieces = [self._piece(part) for part in self.parts]
        self.shards = Shards(
            self.world,
            join(found) if found else None,
            [(piece, len(rows)) for piece, rows in zip(pieces, found, strict=True)],
            [type(part).__name__ for part in self.parts],
            theta,
        )
        self.net.large = self.world.any("long operations", self.net.large)  # of all, or numbers would differ by threads
        return self.shards.rows("outputs", lambda: found)

    def _piece(self, part: Part) -> int:
        """Which piece of the outputs a part of this process belongs to."""
        return 0 if self.whole is self.parts else [other.name for other in self.whole].index(part.name)

    def theta(self) -> Tensor:
        """The model's present weights as a fresh vector (P,)."""
        refreshed(self.model)
        return self.space.read(self.model)

    def elapsed(self, begun: float) -> float:
        """Seconds since ``begun``, of the slowest process: what depends on the clock is the same on all."""
        seconds = time.perf_counter() - begun
        return seconds if self.world is None else self.world.most("seconds", seconds)

    def allowance(self, limit: float | None) -> float:
        """The bytes that may be taken, ``limit`` if given; the same on every process: the least of what they have."""
        found = allowance(self.space.device, limit)
        return found if self.world is None else self.world.least("memory", found)

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes files and shows progress."""
        return self.world is None or self.world.rank == 0

    def require_equal(self, what: str, *vectors: Tensor) -> None:
        """Refuse vectors (P,), or buffers of the model, that are not the same on every process.

        Raises:
            DivergedError: on all of them.
        """
        if self.world is not None:
            held = [t.detach().reshape(-1).double() for t in (*vectors, *self.model.buffers()) if not t.is_complex()]
            self.world.require_equal(what, torch.cat(held))

    def require_alone(self, what: str) -> None:
        """Refuse an objective over several processes for what knows one alone.

        Raises:
            InputError: on all of them.
        """
        if self.world is not None:
            raise InputError(f"{what} is for objectives of one process, and this one is over {self.world.size}.")

    def require_current(self) -> None:
        """Raise where the model no longer has the parameters that were free to move when the objective was made.

        Raises:
            InputError: names those that are gone, of another shape, or (where none were asked for) frozen since.
        """
        followed(self.model)
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
        with entry(self.world, "preparing"):
            for part in self.parts:
                with part.translated(self.model):
                    part.prepare(self.net, theta)

    @guarded(lambda self, *_, **__: self.model)
    @torch.no_grad()
    def outputs(self, theta: Tensor) -> Tensor:
        """u (n, …) at weights θ (P,); one forward pass, the model is left alone."""
        if self.shards is not None:
            return self.shards.rows("outputs", lambda: self._rows(theta))
        return join(self._rows(theta))

    @torch.no_grad()
    def answers(self, net: Any) -> Tensor:
        """The outputs u (n, …) that a network of other weights, buffers or modes gives for the same data."""

        def local() -> list[Tensor]:
            return [part.outputs(net) for part in self.parts]

        return join(local()) if self.shards is None else self.shards.rows("outputs", local)

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
        if self.shards is not None:
            return list(self.outputs(theta).split(self.shards.pieces))
        return self._rows(theta)

    def _not_finite(self, theta: Tensor) -> str:
        """Says which part is not finite at θ, and where."""
        if self.shards is not None:
            return (
                f"{int((~torch.isfinite(self.outputs(theta))).sum())} numbers of the outputs of {self.shards.counts} "
                "rows (by process) are NaN or infinite at the present weights: there is nothing to linearize."
            )
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
        if self.shards is not None:
            value, gradient, _ = self.spread(self._pulled_back, theta)
            return float(value), gradient
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
        if self.shards is not None:
            return self.spread(self._pulled, theta)
        if len(self.parts) == 1:
            return self._at_once(self.parts[0], theta)
        u = self.outputs(theta)
        (value, g), at, gradient = self._sloped(u), 0, torch.zeros_like(theta)
        for part in self.parts:
            rows, pull = self._pulled(part, theta)
            gradient, at = gradient + pull(g[at : at + len(rows)]), at + len(rows)
        return value, gradient, u

    def spread(
        self, pulled: Callable[[Part, Tensor], tuple[Tensor, Callable[[Tensor], Tensor]]], theta: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Φ, ∇_θ Φ and the outputs where rows are spread over processes: an all-gather and an all-reduce.

        Args:
            pulled: a part and θ -> its rows, and Jᵀ of a cotangent.
        """
        assert self.shards is not None
        kept: list[tuple[Tensor, Callable[[Tensor], Tensor]]] = []

        def forwards() -> list[Tensor]:
            if len(self.parts) > 1:  # chunks bound memory: no graph is kept
                return self._rows(theta)
            kept.extend(pulled(part, theta) for part in self.parts)
            return [u for u, _ in kept]

        u = self.shards.rows("outputs", forwards)
        value, g = self._sloped(u)
        own = self.shards.mine(g)

        def backwards() -> Tensor:
            total, at = torch.zeros_like(theta), 0
            for part in self.parts:
                rows, pull = kept[0] if kept else pulled(part, theta)
                total, at = total + pull(own[at : at + len(rows)]), at + len(rows)
            return total

        return value, self.shards.total("gradient", backwards), u

    def _pulled_back(self, part: Part, theta: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        with part.translated(self.model):
            return pullback(lambda th: part.outputs(self.net.bind(th)), theta)

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
        self.require_equal("moving the weights", theta, target)
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
        whole = None if self.whole is self.parts else self.whole
        with entry(self.world, "a subset of parameters"):
            found = type(self).from_parts(
                self.model, self.parts, self.loss, params, self.training, self.net.select, self.world, whole
            )
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
    group: Any = None,
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
        group: a process group of torch.distributed, over which samples are spread: inputs, targets, weights and mask
            are this process's, perhaps none, and the mean is that of all samples. A model in DistributedDataParallel
            brings its own. See docs/distributed.md.

    Raises:
        InputError and its kinds: quoting the offending input.

    Example:
        >>> objective = supervised(torch.nn.Linear(3, 1), torch.randn(8, 3), torch.randn(8, 1))
        >>> objective.shape
        torch.Size([8, 1])
    """
    model, world = joined(model, group)
    own = {
        "weights": weights, "mask": mask, "class_weights": class_weights, "ignore_index": ignore_index,
        "label_smoothing": label_smoothing, "pos_weight": pos_weight, "delta": delta,
    }  # fmt: skip
    with entry(world, "js.supervised"):
        if chunk is not None and (not isinstance(chunk, int) or chunk < 1):
            raise InputError(f"chunk={brief(chunk)}: give a number of samples of at least 1, or None.")
        if world is not None:
            targets, own = _of_all(world, model, inputs, targets, loss, own, {"training": training, "outputs": outputs})
        batch = None if world is not None and empty(inputs) else Batch(inputs)
        require_finite(inputs, "inputs")
        targets = taken(targets)
        if isinstance(loss, Loss) and targets is not None:
            raise InputError("supervised: a js.Loss holds its targets already; pass targets=None beside it.")
        bound = as_loss(loss, targets, **own)
        rows = 0 if batch is None else batch.size
        count = rows if world is None else sum(world.exchanged("the number of samples", rows))
        if bound.targets.dim() == 0 or bound.targets.shape[0] != count:
            raise ShapeError(f"{count} inputs but targets of shape {tuple(bound.targets.shape)}: one row a sample.")
        parts = _chunks(batch, chunk, model, training)
        chosen = None if outputs is None else Chosen.of(outputs)
        return Objective.from_parts(model, parts, bound, params, training, chosen, world)


def _chunks(batch: Batch | None, chunk: int | None, model: nn.Module, training: bool | None) -> list[Batch]:
    """A batch in chunks of so many samples."""
    if batch is None:
        return []
    parts = [batch] if chunk is None or chunk >= batch.size else batch.split(chunk)
    if len(parts) > 1 and isinstance(model, nn.Module) and training is not False:
        coupled = [name for name, m in model.named_modules() if isinstance(m, _BatchNorm) and (training or m.training)]
        if coupled:
            raise InputError(
                f"chunk={chunk}: {coupled[0]!r} is BatchNorm in train mode, whose outputs depend on who shares the "
                "chunk; evaluate in eval mode (training=False), or leave chunk out."
            )
    return parts


def _of_all(
    world: World, model: Any, inputs: Any, targets: Any, loss: Any, own: dict[str, Any], told: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """Targets and options of the samples of all processes, checked to be of one objective.

    Raises:
        InputError: the processes differ in model, loss or options; or the loss is a js.Loss, whose targets are those of
            this process alone.
    """
    by_sample = ("weights", "mask")
    plain = {name: brief(value) for name, value in own.items() if name not in by_sample}
    plain |= {f"whether {name} are given": own[name] is not None for name in by_sample}
    named = loss if isinstance(loss, str) else getattr(loss, "__qualname__", type(loss).__name__)
    require_same_program(world, model, {"the loss": named, **plain, **{k: repr(v) for k, v in told.items()}})
    if isinstance(loss, Loss):
        raise InputError(
            "supervised(group=…) makes the loss of all processes' targets: give a name or a function and targets=, not "
            f"{type(loss).__name__}; or js.Objective(group=…) with a loss of js.distributed.gathered(targets, group)."
        )
    rows = len(leaves(inputs)[0]) if leaves(inputs) and leaves(inputs)[0].dim() else None
    for name, value in (("targets", targets), *((name, own[name]) for name in by_sample)):
        if isinstance(value, Tensor) and value.dim() and rows is not None and len(value) != rows:
            raise ShapeError(f"{rows} inputs but {name} of shape {tuple(value.shape)}: one row a sample.")
    if targets is not None:
        targets = gathered(targets, world)
    return targets, own | {name: gathered(own[name], world) for name in by_sample if own[name] is not None}


def _require_samples_apart(model: nn.Module, training: bool | None) -> None:
    """Refuse layers that mix the samples of a batch: over several processes they would be those of one alone.

    Raises:
        InputError: names one.
    """
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and (module.training if training is None else training):
            raise InputError(
                f"{name or type(module).__name__!r} is {type(module).__name__} in train mode, whose outputs depend on "
                "the samples beside them, which lie on several processes: evaluate in eval mode (training=False)."
            )


def require_objective(objective: object, who: str) -> None:
    """Raise for what is no objective."""
    if not isinstance(objective, Objective):
        raise InputError(
            f"{who} needs a js.Objective (see js.supervised and js.residual), got {type(objective).__name__}."
        )

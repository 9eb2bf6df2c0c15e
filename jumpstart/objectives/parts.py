"""Parts: the pieces that the stacked outputs u = f(θ) are made of, each knowing how its Jacobian is cheapest.

A part is a function of the network alone. A new kind of data (graphs, sequences, …) is a new part.
"""

from __future__ import annotations

import abc
import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import jacrev, vmap

from ..errors import EmptyBatchError, InputError, NonFiniteError, OutputTypeError, ShapeError
from ..utils.autodiff import normal, pullback
from ..utils.brief import brief
from ..utils.fallback import described
from ..utils.progress import track
from ..utils.values import require_dense
from .diagnosis import FUNCTION, MODEL, translated
from .pure import Net

JACOBIAN_BYTES = 2**28  # a chunk of an explicit Jacobian, before it is copied out
BY_OUTPUT = "one backward pass through the whole batch for every output"


class Part(abc.ABC):
    """Some rows of the outputs, as a function of the network; ``name`` is for people."""

    name: str = ""
    kind: str = FUNCTION  # of the user's code that is run, for remedies

    def who(self, model: nn.Module) -> str:
        """Whose code is run, for people."""
        return f"the term {self.name!r}" if self.name else "the outputs function"

    def given(self) -> str:
        """What it is evaluated on, for people."""
        return ""

    def translated(self, model: nn.Module) -> contextlib.AbstractContextManager[None]:
        """What the user's code or a derivative of it raises inside comes out as a named error."""
        return translated(lambda: self.who(model), self.kind, self.given)

    @abc.abstractmethod
    def outputs(self, net: Callable[..., Any]) -> Tensor:
        """The rows u (n, …) for the network as a pure callable."""

    def jacobian(self, net: Net, theta: Tensor) -> tuple[Tensor, float]:
        """(N, P) explicit Jacobian of the flattened outputs, and the backward passes over this part that it took."""
        u, pull = pullback(lambda th: self.outputs(net.bind(th)), theta)
        return by_outputs(u, pull, theta), float(u.numel())

    def write_jacobian(self, net: Net, theta: Tensor, out: Tensor) -> float:
        """Write what ``jacobian`` gives into ``out`` (N, P); the backward passes that it took."""
        found, pulls = self.jacobian(net, theta)
        out.copy_(found)
        return pulls

    def pulls(self, u: Tensor) -> float:
        """Backward passes over this part that ``jacobian`` is expected to take, for its rows u of the outputs."""
        return float(u.numel())

    def place(self, row: int, count: int) -> str:
        """Where a row of ``count`` comes from, for people."""
        return f"row {row}"

    def notes(self) -> list[str]:
        """What is slower than it could be, and why, as far as it has been met: sentences for people."""
        return []

    def data(self) -> dict[str, Tensor]:
        """The tensors that the part is made of, by a name for people; what a function reads is not seen."""
        return {}

    def prepare(self, net: Net, theta: Tensor) -> None:  # noqa: B027 (most parts have nothing to do)
        """Called before the outputs are linearized at θ: a chance to find, or to find again, a faster way to them."""


class Batch(Part):
    """The model called on a batch of inputs: a tensor, a tuple (positional) or a mapping (keywords).

    Attributes:
        fallbacks: what is computed from the batch -> why that goes by a slower way than it could.
    """

    kind = MODEL

    def __init__(self, inputs: Any, what: str = "inputs") -> None:
        self.inputs, self.what = taken(inputs), what
        for leaf in leaves(self.inputs):
            require_dense(leaf, what)
        self.size = _length(self.inputs)
        self.fallbacks: dict[str, list[str]] = {}

    def who(self, model: nn.Module) -> str:
        return f"the model {type(model).__name__}"

    def given(self) -> str:
        shapes = [str(tuple(leaf.shape)) for leaf in leaves(self.inputs)]
        return f"{self.what} of shape {', '.join(shapes[:4])}{', …' if len(shapes) > 4 else ''}"

    def outputs(self, net: Callable[..., Any]) -> Tensor:
        return self.apply(net, self.inputs)

    @staticmethod
    def apply(net: Callable[..., Any], inputs: Any) -> Tensor:
        if isinstance(inputs, dict):
            u = net(**inputs)
        elif isinstance(inputs, (tuple, list)):
            u = net(*inputs)
        else:
            u = net(inputs)
        return require_tensor(u)

    def jacobian(self, net: Net, theta: Tensor) -> tuple[Tensor, float]:
        """Sample by sample; where samples turn out to interact (a random cotangent tells), by backward passes."""
        u, pull = pullback(lambda th: self.outputs(net.bind(th)), theta)
        c = u.numel() // max(1, u.shape[0])
        self.fallbacks.pop("Jacobian", None)
        try:
            found = self._by_sample(net, theta, c)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except (RuntimeError, ValueError) as error:  # what vmap cannot batch
            self.fallbacks["Jacobian"] = [f"{BY_OUTPUT}: samples cannot be taken one by one ({described(error)})"]
            return super().jacobian(net, theta)
        if not pulls_back(found, u, pull):
            self.fallbacks["Jacobian"] = [f"{BY_OUTPUT}: samples interact (as under BatchNorm in train mode)"]
            return super().jacobian(net, theta)
        return found, c + 1.0

    def notes(self) -> list[str]:
        return [f"{what}: {why}" for what, reasons in self.fallbacks.items() for why in reasons]

    def _by_sample(self, net: Net, theta: Tensor, c: int) -> Tensor:
        samples = [leaf for leaf in leaves(self.inputs) if leaf.dim() and leaf.shape[0] == self.size]

        def one(th: Tensor, *sample: Tensor) -> Tensor:
            given = iter(sample)
            inputs = substitute(self.inputs, self.size, lambda leaf: next(given)[None])
            return self.apply(net.bind(th), inputs).reshape(-1)

        rows = vmap(jacrev(one), (None, *(0 for _ in samples)))
        chunk = max(1, int(JACOBIAN_BYTES // (c * (theta.numel() + 1024) * theta.element_size())))
        pieces = list(zip(*(leaf.split(chunk) for leaf in samples), strict=True))
        found = [rows(theta, *piece).reshape(-1, theta.numel()) for piece in track(pieces, label="Jacobian: samples")]
        return torch.cat(found)

    def pulls(self, u: Tensor) -> float:
        return u.numel() / max(1, self.size) + 1

    def data(self) -> dict[str, Tensor]:
        return dict(_named("inputs", self.inputs))

    def split(self, size: int) -> list[Batch]:
        """The same batch in chunks of at most ``size`` samples."""
        return [Batch(take(self.inputs, slice(i, i + size))) for i in range(0, self.size, size)]


class Opaque(Part):
    """Any function of the network that returns a tensor."""

    def __init__(self, fn: Callable[[Callable[..., Any]], Tensor], flat: bool = False) -> None:
        self.fn, self.flat = fn, flat  # flat: the rows of whatever comes back
        self._shape: torch.Size | None = None

    def who(self, model: nn.Module) -> str:
        name = getattr(self.fn, "__qualname__", "").replace("<locals>.", "").replace("<lambda>", "lambda")
        return super().who(model) if self.name else f"the outputs function {name}".rstrip()

    def outputs(self, net: Callable[..., Any]) -> Tensor:
        u = require_tensor(self.fn(net), "the outputs function")
        u = u.reshape(-1) if self.flat else u
        if self._shape is not None and u.shape != self._shape:
            raise ShapeError(
                f"the outputs function {getattr(self.fn, '__qualname__', self.fn)!s} returned shape {tuple(u.shape)} "
                f"after {tuple(self._shape)}: its length must not change between calls; build a new objective (or "
                "pass new points with objective.resampled) where the data change."
            )
        self._shape = u.shape
        return u


def by_outputs(u: Tensor, pull: Callable[[Tensor], Tensor], theta: Tensor) -> Tensor:
    """J (N, P) by a backward pass for every output: many at once, or one by one where torch batches them wrongly."""
    n = u.numel()
    # Each cotangent in a chunk holds the network's activations besides its row, hence the factor on n.
    chunk = max(1, int(JACOBIAN_BYTES // ((theta.numel() + 64 * n) * theta.element_size())))
    rows = []
    try:
        for at in track(range(0, n, chunk), label="Jacobian: outputs"):
            one_hot = u.new_zeros(min(chunk, n - at), n)
            one_hot[:, at : at + chunk].fill_diagonal_(1)
            rows.append(vmap(pull)(one_hot.view(-1, *u.shape)))
        found = torch.cat(rows)
        if pulls_back(found, u, pull):  # some of torch's batching rules are wrong (cdist's)
            return found
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, ValueError):  # what vmap cannot batch; where a single pass fails as well, that is told
        rows = []
    found = torch.empty(n, theta.numel(), dtype=theta.dtype, device=theta.device)
    one = torch.zeros_like(u).reshape(-1)
    for i in track(range(n), label="Jacobian: outputs, one by one"):
        one[i] = 1
        found[i] = pull(one.view(u.shape).clone()).detach()
        one[i] = 0
    return found


def pulls_back(found: Tensor, u: Tensor, pull: Callable[[Tensor], Tensor]) -> bool:
    """Whether an explicit Jacobian gives Jᵀw for a random cotangent w."""
    w = normal(u.shape, 0).to(u)
    exact = pull(w)
    miss = torch.linalg.vector_norm(w.reshape(-1) @ found.reshape(u.numel(), -1).to(w) - exact)
    return bool(miss <= torch.finfo(u.dtype).eps ** 0.5 * torch.linalg.vector_norm(exact))


def join(rows: Sequence[Tensor]) -> Tensor:
    """The rows of all parts, stacked; a single part's as they are, without a copy."""
    return rows[0] if len(rows) == 1 else torch.cat(list(rows))


def require_tensor(u: Any, who: str = "the model") -> Tensor:
    """Raise unless the outputs are one dense tensor of real floating-point numbers.

    Raises:
        OutputTypeError: quotes the type and gives the remedy. InputError: it is sparse, say.
    """
    if not isinstance(u, Tensor):
        keys = f" with fields {list(u)[:6]}" if isinstance(u, dict) else ""
        raise OutputTypeError(
            f"{who} returned {type(u).__name__}{keys}, not a tensor: use js.Objective(model, outputs=lambda net: "
            "net(inputs).logits, loss=…) (or [0], or ['logits']) to say which tensor is trained."
        )
    if not u.is_floating_point():
        raise OutputTypeError(f"{who} returned a tensor of {u.dtype}: outputs must be real floating-point numbers.")
    require_dense(u, f"what {who} returned")
    return u


def taken(inputs: Any) -> Any:
    """The same nest, mappings as dicts, and tensors of inference mode, which autograd refuses, copied out of it."""
    if isinstance(inputs, Mapping):
        items = {key: taken(value) for key, value in inputs.items()}
        same = isinstance(inputs, dict) and all(items[key] is value for key, value in inputs.items())
        return inputs if same else items
    if type(inputs) in (tuple, list):
        entries = [taken(value) for value in inputs]
        same = all(new is old for new, old in zip(entries, inputs, strict=True))
        return inputs if same else type(inputs)(entries)
    if isinstance(inputs, Tensor) and inputs.is_inference():
        with torch.inference_mode(False):
            return inputs.clone()
    return inputs


def take(inputs: Any, rows: slice) -> Any:
    """The same nest of tensors with only some samples; what has no batch dimension of that length is kept."""
    return substitute(inputs, _length(inputs), lambda leaf: leaf[rows])


def substitute(inputs: Any, n: int, change: Callable[[Tensor], Tensor]) -> Any:
    """The same nest with ``change`` applied, in the order of ``leaves``, to each tensor of n samples."""
    if isinstance(inputs, dict):
        return {key: substitute(value, n, change) for key, value in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        return tuple(substitute(value, n, change) for value in inputs)
    return change(inputs) if isinstance(inputs, Tensor) and inputs.dim() and inputs.shape[0] == n else inputs


def leaves(inputs: Any) -> list[Tensor]:
    """The tensors in a nest of dicts, tuples and lists."""
    if isinstance(inputs, Mapping):
        inputs = list(inputs.values())
    if isinstance(inputs, (tuple, list)):
        return [leaf for item in inputs for leaf in leaves(item)]
    return [inputs] if isinstance(inputs, Tensor) else []


def _named(name: str, inputs: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors in a nest, each with the expression that reaches it."""
    if isinstance(inputs, Tensor):
        yield name, inputs
    elif isinstance(inputs, dict):
        for key, value in inputs.items():
            yield from _named(f"{name}[{key!r}]", value)
    elif isinstance(inputs, (tuple, list)):
        for i, value in enumerate(inputs):
            yield from _named(f"{name}[{i}]", value)


def require_finite(inputs: Any, what: str) -> None:
    """Raise for NaN or infinity in any floating-point tensor of a nest.

    Raises:
        NonFiniteError: says how many entries, and where the first one is.
    """
    for leaf in leaves(inputs):
        require_dense(leaf, what)
        if leaf.is_floating_point() and not bool(torch.isfinite(leaf).all()):
            bad = ~torch.isfinite(leaf)
            first = tuple(int(i) for i in bad.nonzero()[0])
            raise NonFiniteError(
                f"{what} of shape {tuple(leaf.shape)} hold {int(bad.sum())} NaN or infinite entries, the first at "
                f"{first}: drop or repair those samples."
            )


def empty(inputs: Any) -> bool:
    """Whether a nest of tensors holds no sample."""
    return any(leaf.dim() and leaf.shape[0] == 0 for leaf in leaves(inputs))


def _length(inputs: Any) -> int:
    found = [leaf for leaf in leaves(inputs) if leaf.dim()]
    if not found:
        raise InputError(
            "inputs must be a tensor, or a tuple or mapping of tensors (torch.as_tensor(array) for arrays), got "
            f"{brief(inputs)}."
        )
    n = found[0].shape[0]
    if n == 0:
        raise EmptyBatchError(f"inputs of shape {tuple(found[0].shape)} hold no sample.")
    return n


def weight_scale(weight: Any, points: Tensor) -> float | Tensor:
    """√weight of a residual term: a number, or one for each of its points (m,), checked."""
    if not isinstance(weight, (int, float)):
        weight = _by_point(weight, points)
        if isinstance(weight, Tensor):
            return weight.sqrt()
    if isinstance(weight, bool) or not (math.isfinite(weight) and weight > 0):
        raise InputError(f"a term's weight must be positive and finite, got {weight!r}.")
    return math.sqrt(weight)


def _by_point(weight: Any, points: Tensor) -> float | Tensor:
    for leaf in leaves(weight):
        require_dense(leaf, "a term's weight")
    try:
        found = torch.as_tensor(taken(weight)).detach().to(points.device, points.dtype)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"a term's weight must be a positive number, or one for each of its points, got {brief(weight)}."
        ) from error
    if found.numel() == 1:
        return float(found)
    if found.dim() == 2 and found.shape[1] == 1:
        found = found[:, 0]
    if found.shape != points.shape[:1]:
        raise ShapeError(
            f"a term's weight of shape {tuple(found.shape)} for {len(points)} points: give a number, or one for each "
            f"point ({len(points)},)."
        )
    if not bool((torch.isfinite(found) & (found > 0)).all()):
        raise InputError(f"a term's weights must be positive and finite, got {brief(weight)}.")
    return found

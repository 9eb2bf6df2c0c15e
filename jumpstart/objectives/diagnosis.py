"""What can only be met while running: torch's exceptions, and the user's own, turned into named errors with a remedy.

One table of what torch says and what it means. Errors keep the original as their cause, quote its first line, and say
whether the model, a term, a function or the loss raised it. What shows by looking at a model is asked in ``door``.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..errors import (
    EvaluationError,
    InputError,
    JumpstartError,
    NondeterministicError,
    NoSecondDerivativeError,
    ShapeError,
    UntraceableError,
)
from ..utils.fallback import described

# Kinds of the user's code: what a remedy can be differs.
MODEL, TERM, FUNCTION, LOSS = "model", "term", "function", "loss"

ONE_POINT = (
    "a js.Term sees ONE point x of shape (d,), not a batch, and takes derivatives with torch.func (grad, jacrev, "
    "hessian, jvp): torch.func.grad(lambda z: net(z)[0])(x), say"
)
UNCHECKPOINTED = (
    "switch checkpointing off while jumpstart is asked (gradient_checkpointing_disable(), or call the layer itself)"
)
_IN_ONE_POINT = {TERM: f"{ONE_POINT}; x[0] instead of x[:, 0:1]"}
_TENSOR_OPERATIONS = {
    TERM: "write it with torch operations: torch.where for a branch, torch.sin and its like for functions of x",
    LOSS: "the function sees one sample and must be made of torch operations: torch.where for a branch; weights by "
    "class or by sample are arguments (class_weights=, weights=) and not W[y] inside",
}


@dataclass(frozen=True)
class Row:
    """What torch says (a pattern), what it means, and what to do: for any kind of code, and for some in particular."""

    says: str
    cause: str
    remedy: str
    special: dict[str, str] = field(default_factory=dict)
    kind: type[JumpstartError] = UntraceableError
    through: str = ""  # the ending of a file that the exception passed, where the words alone do not tell


TABLE = (
    Row(
        r"saved tensor hooks",
        "recomputes or moves what it saves for the backward pass (activation checkpointing, saved-tensor hooks), which "
        "torch.func does not support",
        UNCHECKPOINTED,
    ),
    Row(
        r"setup_context",
        "uses activation checkpointing (use_reentrant=True), which torch.func does not support",
        UNCHECKPOINTED,
        through="torch/utils/checkpoint.py",
    ),
    Row(
        r"setup_context|backward hook",
        "has a backward hook on a module, which torch.func does not support",
        "remove it while jumpstart is asked (handle.remove())",
        through="torch/utils/hooks.py",
    ),
    Row(
        r"setup_context|does not have vmap support|must implement the jvp|jvp.*custom autograd\.Function",
        "uses a torch.autograd.Function that torch.func cannot transform",
        "give it forward(...) without ctx, a setup_context staticmethod and generate_vmap_rule = True",
    ),
    Row(
        r"derivative for '.*' is not implemented|double backward|differentiate twice|once_differentiable"
        r"|derivative of .* is not implemented|does not support automatic differentiation for outputs with",
        "uses an operation whose derivative has no derivative",
        "ask for what needs first derivatives alone (order=1, no geodesic acceleration), or replace the operation",
        kind=NoSecondDerivativeError,
    ),
    Row(
        r"requires_grad_\(\)|does not require grad and does not have a grad_fn|not have been used in the graph"
        r"|backward\(\) called inside a functorch|requires_grad on inference|Setting requires_grad",
        "takes derivatives with torch.autograd (grad, backward, requires_grad_)",
        "take them with torch.func (grad, jacrev, vjp, jvp; vmap over a batch), which compose",
        {
            TERM: ONE_POINT,
            FUNCTION: "take them with torch.func: torch.vmap(torch.func.grad(lambda z: net(z)[0]))(x) for ∇u at a "
            "batch of points, or write the residual at one point as a js.Term",
        },
    ),
    Row(
        r"Inference tensors|Inplace update to inference",
        "uses tensors that were made under torch.inference_mode()",
        "clone them outside of it (tensor.clone()), or make them under torch.no_grad()",
    ),
    Row(
        r"doesn't have storage|numpy\(\)|[Nn]um[Pp]y|Cannot access storage|__array__|data pointer",
        "leaves torch for NumPy, lists or packed sequences, where no derivative can follow",
        "stay in torch operations; for recurrent layers pass padded sequences",
        _TENSOR_OPERATIONS,
    ),
    Row(
        r"data-dependent control flow|\.item\(\)|Boolean value of Tensor with more|ambiguous",
        "decides with Python (if, while, float(), .item()) by the value of a tensor",
        "write it with torch operations: torch.where for a branch",
        _TENSOR_OPERATIONS,
    ),
    Row(
        r"random operation|randomness",
        "draws random numbers",
        "draw them before, or evaluate in eval mode (training=False)",
        {
            TERM: "draw them before, and pass new points (objective.resampled, or fit(resample=…)) instead",
            LOSS: "draw them before, and keep them in the targets",
        },
        NondeterministicError,
    ),
    Row(
        r"dynamic shape|boolean mask|vmap: inplace|accessing `data` under vmap|[Bb]atching rule|vmap: We do not support"
        r"|vmap: It looks like|inplace.*is not possible",
        "does what torch.vmap cannot batch (a result whose shape depends on values, writing into a tensor in place)",
        "use torch.where or a mask as a factor instead of choosing entries, torch.stack instead of writing",
    ),
    Row(
        r"forward AD|forward[- ]mode",
        "uses an operation that forward-mode differentiation does not know",
        "replace the operation",
        {LOSS: "write the loss with torch operations, or use a loss of js.losses (js.losses.Huber for hinges, say)"},
    ),
    Row(
        r"same dtype|expected scalar type|expected m1 and m2|dtype|must match the other type",
        "meets tensors of different dtypes",
        "bring inputs and model to one dtype: model.double(), or inputs.to(next(model.parameters()).dtype)",
        {TERM: "bring points and model to one dtype: model.double(), or points.to(next(model.parameters()).dtype)"},
        InputError,
    ),
    Row(
        r"same device|on device|cuda:\d and cpu",
        "meets tensors on different devices",
        "move model, inputs and targets to one device",
        kind=InputError,
    ),
    Row(
        r"mat1|[Ee]xpected.*input|too many ind|out of range|normalized_shape|channels|must match|invalid index"
        r"|not enough values|0-d|broadcast|shape|size",
        "cannot be evaluated on what it is given",
        "check shape and dtype of the inputs that it takes",
        _IN_ONE_POINT,
        ShapeError,
    ),
)

_PACKAGE = Path(__file__).resolve().parent.parent


def diagnosed(error: BaseException, who: str, kind: str, given: str = "") -> JumpstartError:
    """A named error for an exception that ``who`` met, evaluated on ``given``."""
    text = str(error)
    quoted = described(error).rstrip(".")
    given = f" on {given}" if given else ""
    for row in TABLE:
        if _speaks(error, row) and re.search(row.says, text):
            remedy = row.special.get(kind, row.remedy)
            return row.kind(f"{who}{given} {row.cause} ({quoted}): {remedy}.")
    return EvaluationError(
        f"{who} raised {quoted}{given}{seen(error)}; it is evaluated as a pure function of its weights."
    )


def underivable(error: Exception) -> bool:
    """Whether torch says that an operation's derivative has no derivative."""
    return any(row.kind is NoSecondDerivativeError and re.search(row.says, str(error)) for row in TABLE)


def _speaks(error: BaseException, row: Row) -> bool:
    """Whether an exception can be torch's word on a row: what the user's code raises by itself keeps its own."""
    frames = traceback.extract_tb(error.__traceback__)
    if row.through and not any(frame.filename.replace("\\", "/").endswith(row.through) for frame in frames):
        return False
    if isinstance(error, (IndexError, NotImplementedError)):
        return True
    if isinstance(error, (TypeError, ValueError)):
        return bool(re.search(r"numpy|array|vmap|data-dependent|Tensor|tensor|unpack", str(error)))
    return type(error) is RuntimeError or isinstance(error, torch.cuda.CudaError if torch.cuda.is_available() else ())


def seen(error: BaseException) -> str:
    """Where the user's own code, or else the library's, raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    torchs = Path(torch.__file__).resolve().parent
    own = [
        f
        for f in frames
        if not Path(f.filename).is_relative_to(torchs) and not Path(f.filename).is_relative_to(_PACKAGE)
    ]
    frame = next(iter([*own[::-1], *frames[::-1]]), None)
    return "" if frame is None else f" at {Path(frame.filename).name}:{frame.lineno}"


class translated:  # a context manager, read as a verb
    """Whatever the user's code raises inside comes out as a named error; lack of memory and warnings as they are.

    A class and not a generator: contextlib takes an error whose cause is a StopIteration for Python's own conversion
    of it, and would let the StopIteration out, which ends loops without a word. GeneratorExit as well.
    """

    def __init__(self, who: str | Callable[[], str], kind: str = MODEL, given: Callable[[], str] = str) -> None:
        self.who, self.kind, self.given = who, kind, given

    def __enter__(self) -> None:
        pass

    def __exit__(self, of: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, (Exception, GeneratorExit)):
            return
        if isinstance(error, (JumpstartError, MemoryError, torch.OutOfMemoryError, Warning)) or lacks_memory(error):
            return
        who = self.who if isinstance(self.who, str) else self.who()
        raise diagnosed(error, who, self.kind, self.given()) from error


def lacks_memory(error: BaseException) -> bool:
    """Whether torch's allocator raised it; on a CPU that is a plain RuntimeError."""
    return isinstance(error, RuntimeError) and "memory" in str(error) and "alloc" in str(error)

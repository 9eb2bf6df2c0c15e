"""Named errors: each quotes what it was given and says what to do instead.

Misuse raises one of these before anything is changed; numerical trouble during a jump is not an
exception but an :class:`jumpstart.Outcome`.
"""

from __future__ import annotations


class JumpstartError(Exception):
    """Base class of every error that jumpstart raises on purpose."""


class InputError(JumpstartError, ValueError):
    """Something that was passed in cannot be used; the message quotes it."""


class UnknownNameError(InputError, AttributeError):
    """The network holds nothing of the name that it was asked for."""


class NonFiniteError(InputError):
    """Inputs, targets, weights or outputs hold NaN or infinity."""


class ShapeError(InputError):
    """Shapes that have to agree do not."""


class EmptyBatchError(ShapeError):
    """There is not a single sample."""


class TargetError(InputError):
    """Targets have the wrong dtype or lie outside the range that the loss allows."""


class NoParametersError(InputError):
    """No trainable parameter is left to move."""


class HorizonError(InputError):
    """A horizon that is negative, NaN or of an unknown kind."""


class OutputTypeError(JumpstartError, TypeError):
    """The module or an ``outputs`` function returned something other than a tensor."""


class NondeterministicError(JumpstartError, RuntimeError):
    """The model answers differently when asked twice, so there is nothing to linearize."""


class EvaluationError(JumpstartError, RuntimeError):
    """The model, a residual or a loss raised an exception when it was evaluated; the original is its cause."""


class UntraceableError(EvaluationError):
    """What the model, a residual or a loss does cannot be differentiated or batched by ``torch.func``."""


class NoSecondDerivativeError(UntraceableError):
    """An operation has a derivative, but the derivative of it is not known."""


class InconsistentError(JumpstartError, RuntimeError):
    """The derivatives that torch gives are not those of the function that the model computes."""


class NonConvexError(InputError):
    """The loss has negative curvature in the outputs, so its flow has no closed form."""


class NotSmoothError(InputError):
    """The loss has kinks (absolute values, hinges, quantiles), at which its slope jumps."""


class FlowError(JumpstartError, ArithmeticError):
    """The reduced flow cannot be integrated: the loss is not smooth, or curves down on the way."""


class BudgetError(FlowError):
    """A jump would cost more than it may; ``needed`` is what the next piece takes, in steps' worth of work."""

    needed: float = 0.0


class MetricError(InputError):
    """An optimizer's state does not give a metric."""


class MemoryLimitError(InputError):
    """No method fits the memory limit."""


class ArchiveError(InputError):
    """A file cannot be written or read, is damaged or something else, or belongs to another model or other data."""


class RankError(JumpstartError, RuntimeError):
    """One process of a group failed, and all have stopped together: nothing has moved. Says which, and why."""


class DivergedError(RankError):
    """The processes of a group are not at the same point of the same program, or hold other numbers there."""


class GroupError(RankError):
    """The process group does not answer: a process has died, its time is over, or the group was destroyed."""


class MissingPackageError(JumpstartError, ImportError):
    """An optional package is not installed; the message says how to install it."""


class KernelError(InputError):
    """A kernel that is not symmetric and positive semidefinite up to rounding."""


class TruncationWarning(UserWarning):
    """An answer from a truncated basis that was not asked for, whose error bound rivals the movement."""


class KinkWarning(UserWarning):
    """The present weights lie on kinks of the model, where outputs move otherwise than any linearization says."""


class TrustWarning(UserWarning):
    """An answer beyond the horizon up to which the real network was found to follow the linearized one."""

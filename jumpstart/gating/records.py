"""What is recorded of one parameter's gradient, and what speaks against it."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor, nn

from ..distributed.world import World
from ..errors import InputError, JumpstartError
from .contributions import accumulating, contributions
from .uses import Use, task

_FINE = {torch.float64: 1e-8, torch.float32: 1e-4}  # rounding of a factor


class Record:
    """What is known of one parameter's gradient; it does not hold the parameter."""

    def __init__(self, name: str, parameter: nn.Parameter, each: str, world: World | None = None) -> None:
        self.name, self.each, self.find, self.world = name, each, weakref.ref(parameter), world
        self.fired: list[tuple[Use, str]] = []  # of the backward pass that runs
        self.pending: tuple[Tensor, int, Tensor | None] | str | None = None
        self.before: Tensor | None = None  # marks of the gradient that it is added to
        self.came: Tensor | None = None  # marks of what other hooks may change on the way
        self.reset(None)

    def reset(self, before: Tensor | None) -> None:
        """Nothing recorded; a gradient that is there already is of no sample that was."""
        self.squares: Tensor | None = None
        self.samples, self.used = 0, False
        self.marks: Tensor | None = None
        self.trouble: str | None = None
        self.missed: Tensor | None = None
        self.leftover = None if before is None else before[0]

    def wanted(self, module: nn.Module, name: str) -> bool:
        """Is the parameter the module's own at present (no stand-in), and not frozen?"""
        for part in name.split(".")[:-1]:
            module = getattr(module, part)
        own = module._parameters.get(name.split(".")[-1])
        return own is not None and own.requires_grad and own is self.find()

    @torch.no_grad()
    def arrive(self, gradient: Tensor) -> None:
        """A hook on the parameter: what this backward pass adds, before it is added."""
        parameter = self.find()
        assert parameter is not None
        self.pending = self._added(parameter, gradient)
        self.before = None if parameter.grad is None else _marks(parameter.grad)
        self.came = _marks(gradient) if len(parameter._backward_hooks or ()) > 1 else None

    def _added(self, parameter: nn.Parameter, gradient: Tensor) -> tuple[Tensor, int, Tensor | None] | str:
        """Squares, samples and a doubt; or why there are none."""
        fired, self.fired = [(use, name) for use, name in self.fired if use.task == task()], []
        if gradient.layout != torch.strided:
            return "its gradient is sparse; give the embedding sparse=False."
        if self.each == "microbatch":
            return gradient.to(accumulating(gradient.dtype)).square(), 1, None
        if not fired:
            return (
                "a gradient arrived that no layer was seen to add (its weight is used by a function or by another "
                "module, or the model is compiled); use each='microbatch', or leave it out by params=."
            )
        try:
            return contributions(fired, parameter, gradient)
        except JumpstartError as error:  # a backward pass is not broken off: who asks for the noise is told
            return str(error)
        finally:
            for use, _ in fired:
                use.done()

    @torch.no_grad()
    def keep(self, parameter: Tensor) -> None:
        """A hook after accumulation: the gradient was meant for ``p.grad``."""
        pending, before, came = self.pending, self.before, self.came
        self.pending = self.before = self.came = None
        if parameter.grad is None or pending is None:
            return
        self._begin(before)
        if isinstance(pending, str):
            self.trouble = self.trouble or pending
            return
        squares, count, missed = pending
        self.squares = squares if self.squares is None else self.squares.add_(squares)
        self.samples += count
        self.marks = _marks(parameter.grad)
        if missed is not None:
            self._doubt(missed)
        if came is not None:
            # Sums add up, norms only on nothing.
            off = self.marks - came if before is None else (self.marks - came - before)[1:]
            scale = self.marks.abs().sum() + came.abs().sum() + (0 if before is None else before.abs().sum())
            self._doubt(off.abs().amax() > _FINE.get(parameter.dtype, 0.02) * scale)

    def _begin(self, before: Tensor | None) -> None:
        """Start anew after a step; go on with a gradient that may have been scaled."""
        if before is None or self.used or not (self.samples or self.trouble):
            self.reset(before)
        elif (self.marks is None or float(self.marks[0]) > 0) and float(before[0]) == 0:
            self.reset(None)  # zeroed
        elif self.squares is not None and self.marks is not None:
            ratio = before[0] / self.marks[0]
            if bool(torch.isfinite(ratio)):
                self.squares *= ratio.square()

    def _doubt(self, missed: Tensor) -> None:
        self.missed = missed if self.missed is None else self.missed | missed

    def noise(self) -> Tensor | None:
        parameter = self.find()
        gradient = None if parameter is None else parameter.grad
        if gradient is None:
            return None
        if self.world is not None:
            return self._over_processes(self.world, gradient)
        if self.trouble is not None:
            raise InputError(f"{self.name}: {self.trouble}")
        if self.squares is None or self.marks is None:
            return None
        b = self.samples
        if b < 2:
            raise InputError(f"{self.name}: a batch of one has no variance; give two samples or more before a step.")
        now = _marks(gradient)
        factor = torch.where(self.marks[0] > 0, now[0] / self.marks[0], torch.ones_like(now[0]))
        self._look(gradient, now, factor)
        wide = gradient.to(self.squares.dtype)
        found = self.squares * (factor.square() * (b / (b - 1)))
        return found.addcmul_(wide, wide, value=-1 / (b - 1)).clamp_min_(0)

    def _over_processes(self, world: World, gradient: Tensor) -> Tensor:
        """The variance of a gradient that is the mean over processes, from the samples of all: one all-reduce.

        A sample adds a process's share less to the mean than to its own gradient, so that its square counts 1/W².
        """

        def local() -> Tensor:
            if self.trouble is not None:
                raise InputError(f"{self.name}: {self.trouble}")
            if self.squares is None or self.marks is None:
                raise InputError(f"{self.name}: nothing was recorded of its gradient on this process.")
            self._look(gradient, self.marks, torch.ones_like(self.marks[0]))
            return torch.cat([self.squares.reshape(-1), self.marks.new_tensor([self.samples]), self.marks[1:]])

        total = world.sum(f"squares of the samples of {self.name}", local)
        squares, b, mean = total[:-2].view(gradient.shape), float(total[-2]), total[-1] / world.size
        now = _marks(gradient)
        if not bool((now[1] - mean).abs() <= _FINE.get(gradient.dtype, 0.02) * now.abs().sum()):
            raise InputError(
                f"{self.name}: its gradient is not the mean over {world.size} processes of what their backward passes "
                "gave (no DistributedDataParallel, no_sync, clipping?), so that its variance is not known."
            )
        if b < 2:
            raise InputError(f"{self.name}: a batch of one has no variance; give two samples or more before a step.")
        wide = gradient.to(squares.dtype)
        found = squares * (b / (b - 1) / world.size**2)
        return found.addcmul_(wide, wide, value=-1 / (b - 1)).clamp_min_(0)

    def _look(self, gradient: Tensor, now: Tensor, factor: Tensor) -> None:
        """All that speaks against the numbers, asked of the device at once."""
        fine = _FINE.get(gradient.dtype, 0.02)
        none = torch.zeros((), dtype=torch.bool, device=now.device)
        assert self.marks is not None
        doubts = [
            none if self.missed is None else self.missed,
            none if self.leftover is None else self.leftover > 0,
            (now - factor * self.marks).abs().amax() > fine * now.abs().sum(),
        ]
        missed, leftover, changed = torch.stack(doubts).tolist()
        if missed:
            raise InputError(
                f"{self.name}: its gradient has a part that the rows of no sample account for (a penalty on the "
                "weight, a gradient of a gradient, a hook that changes it); use each='microbatch', or leave it out by "
                "params=."
            )
        if leftover:
            raise InputError(
                f"{self.name}: its gradient was not zero when the record of it began; call zero_grad() after a step."
            )
        if changed:
            raise InputError(
                f"{self.name}: its gradient was changed since the backward pass by more than one factor "
                "(clip_grad_value_, averaging over processes), so that its variance is not known."
            )


def _marks(t: Tensor) -> Tensor:
    """Norm and sum: one factor changes both alike."""
    t = t.to_dense() if t.layout != torch.strided else t
    wide = accumulating(t.dtype)
    return torch.stack([torch.linalg.vector_norm(t, dtype=wide), t.sum(dtype=wide)])

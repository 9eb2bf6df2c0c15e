"""Objectives on fresh samples of what a training loop already has, and others to accept a jump by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ...distributed.sharded import has_shards
from ...errors import InputError
from ...losses.base import Loss
from ...utils.brief import brief
from ...utils.kinds import is_named
from ..objective import Consistent, Objective, supervised
from ..outputs import Chosen, Output
from ..parameters import ParameterSpace, Select
from .batches import Pair, Split, copied, next_token
from .drawing import Drawer, Place
from .sources import Collate, source_of

IGNORED = -100  # as torch's cross-entropy
ENTRIES = {"seed", "number", "position", "draws", "last", "size"}  # of a state


class SampledObjective:
    """Called, an objective on the next samples; made by :func:`jumpstart.from_loader`.

    Attributes:
        samples: of each objective. batch_size: of the loader, None if unknown. dataset_size: samples in a pass over it,
            None if unknown.
    """

    def __init__(
        self, model: nn.Module, drawer: Drawer, build: Callable[[Pair], Objective], samples: int, fixed: bool
    ) -> None:
        self.model, self.samples, self.fixed = model, samples, fixed
        self._drawer, self._build = drawer, build
        self._consistent = Consistent()
        self._last: list[Any] = []  # what tells the last jump's samples from others
        self._held: dict[str, tuple[list[Any], Pair]] = {}  # where samples are fixed
        self._made: dict[str, Objective] = {}

    @property
    def batch_size(self) -> int | None:
        return self._drawer.source.batch_size

    @property
    def dataset_size(self) -> int | None:
        return self._drawer.source.size

    @property
    def whole(self) -> bool:
        """Whether it gives all of the data each time, so that there are no others to accept a jump by."""
        return self.fixed and self.samples == self.dataset_size

    def __call__(self) -> Objective:
        """An objective on the next samples, for the next jump.

        Raises:
            InputError and its kinds: there are no more samples, or they are something else than expected.
            EvaluationError: the loader raised something. The model is untouched, and the next call goes on.
        """
        if self.fixed:
            return self._kept("jump")
        keys, pair = self._drawer.draw(self.samples)
        objective = self._objective(pair)
        self._last = keys
        return objective

    def acceptance(self) -> Objective:
        """An objective on other samples than the last call's, for who accepts that jump (``judge=``)."""
        if self.fixed:
            return self._kept("acceptance")
        return self._objective(self._drawer.draw(self.samples, self._last)[1])

    def _kept(self, role: str) -> Objective:
        for name in ("jump", "acceptance"):  # in this order, whichever is asked for first
            if name not in self._held:
                self._held[name] = self._drawer.draw(self.samples, self._held["jump"][0] if self._held else ())
            if name == role:
                break
        known = self._made.get(role)
        names = ParameterSpace(self.model, None if known is None else known.params).names
        if known is None or known.space.names != names:  # something has been frozen, or is free again
            self._made[role] = self._objective(self._held[role][1])
        return self._made[role]

    def _objective(self, pair: Pair) -> Objective:
        objective = self._build(pair)
        objective.consistent = self._consistent  # the data are new, the model is not
        return objective

    def state_dict(self) -> dict[str, Any]:
        """Which samples come next: numbers and names, a few for each sample of the last jump."""
        place, size = Place() if self.fixed else self._drawer.place, self.dataset_size  # fixed ones are the first
        return {**vars(place), "seed": self._drawer.seed, "last": list(self._last), "size": size}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken, with a loader made like that one.

        Raises:
            InputError: it is no such state, or of a dataset of another size; nothing has changed.
        """
        if not isinstance(state_dict, dict) or set(state_dict) != ENTRIES:
            raise InputError(f"this is no state of js.from_loader: it holds {brief(state_dict)}.")
        numbers = {name: state_dict[name] for name in ("number", "position", "draws", "seed")}
        if any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in numbers.values()):
            raise InputError(f"this is no state of js.from_loader: {numbers} must be integers of at least 0.")
        if not isinstance(state_dict["last"], (list, tuple)):
            raise InputError(f"this is no state of js.from_loader: last={brief(state_dict['last'])} is no list.")
        if state_dict["size"] != self.dataset_size:
            raise InputError(
                f"this state is of a loader with {state_dict['size']} samples in a pass, {self._drawer.source.what} "
                f"has {self.dataset_size}: give it the same data."
            )
        seed, last = numbers.pop("seed"), [tuple(key) if isinstance(key, list) else key for key in state_dict["last"]]
        self._drawer.go_to(Place(**numbers))
        self._drawer.seed, self._last = seed, last
        self._held, self._made = {}, {}

    def __repr__(self) -> str:
        known = {"batch_size": self.batch_size, "dataset_size": self.dataset_size}
        told = "".join(f", {name}={value}" for name, value in known.items() if value is not None)
        return f"SampledObjective({self._drawer.source.what}, samples={self.samples}{told})"


def from_loader(
    model: nn.Module,
    loader: Any,
    loss: str | Callable[[Tensor, Tensor], Tensor],
    samples: int = 256,
    *,
    target: str | None = None,
    split: Callable[[Any], Any] | None = None,
    outputs: Output = None,
    shift: bool | None = None,
    collate_fn: Collate | None = None,
    fixed: bool = False,
    seed: int = 0,
    params: Select = None,
    chunk: int | None = None,
    training: bool | None = None,
    **options: Any,
) -> SampledObjective:
    """Objectives on samples of a Dataset, a DataLoader or batches, for a loop that has one.

    Called, the result is an objective on fresh samples, moved to the model's device; its ``acceptance()`` is one on
    samples that the last call did not have. Give it to a wrapper as it is: ``js.JumpOptimizer(optimizer, data,
    judge=data.acceptance)``. Samples are drawn in this process, without workers and on private random numbers: the
    loop's own iteration, its sampler, and the global random state are untouched, and ``state_dict()`` says which
    samples come next.

    Args:
        loader: a DataLoader (its sampler is copied, its collate_fn used), a map-style or iterable Dataset (shuffled, or
            as it comes), an iterable of batches; or an iterator, which is used up as it goes.
        loss: as :func:`jumpstart.supervised`'s, whose targets come with the samples.
        samples: of each objective, exactly. Where a pass over the loader ends, the next begins.
        target: the name of the targets in batches that are mappings ("labels"); all else in them goes to the model.
        split: a function batch -> (inputs, targets), for batches that are neither pairs nor mappings.
        outputs: which tensor of what the model returns is trained: a name, a place in a tuple, or a function of it.
            None for a tensor as it is, and ``logits`` of anything else.
        shift: True for a causal language model: outputs at a position against the target at the next, as its own loss
            does. Targets that are the input_ids themselves are refused where nothing is said.
        collate_fn: for a dataset, what makes a batch of a list of its samples; None for torch's.
        fixed: draw the samples once, and give the same each time.
        seed: of what is drawn.
        params, chunk, training: as :func:`jumpstart.supervised`'s; chunk=batch size bounds memory to a batch's.
        options: of the loss: class_weights, ignore_index, label_smoothing, pos_weight, delta.

    Raises:
        InputError and its kinds: quoting what was given, or what the loader gives instead of batches.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(3, 1)
        >>> data = torch.utils.data.TensorDataset(torch.randn(50, 3), torch.randn(50, 1))
        >>> sampled = from_loader(model, torch.utils.data.DataLoader(data, 10, shuffle=True), "mse", samples=20)
        >>> sampled().shape, sampled.acceptance().shape, sampled.batch_size, sampled.dataset_size
        (torch.Size([20, 1]), torch.Size([20, 1]), 10, 50)
    """
    _require_model(model)
    if isinstance(loss, Loss):
        raise InputError("from_loader: a js.Loss holds targets already; give its name, or a function of one sample.")
    if unknown := set(options) - {"class_weights", "ignore_index", "label_smoothing", "pos_weight", "delta"}:
        raise InputError(f"from_loader: {sorted(unknown)} is no option; what belongs to samples comes with the loader.")
    if shift not in (None, True, False):
        raise InputError(f"shift={brief(shift)}: give True, False, or None.")
    _require_count("samples", samples, 1)
    _require_count("seed", seed, 0)
    source = source_of(loader, _split(target, split), collate_fn)
    device, chosen = ParameterSpace(model, params).device, Chosen.of(outputs, bool(shift))
    ignored = options.get("ignore_index", IGNORED)

    def build(pair: Pair) -> Objective:
        inputs, targets = copied(next_token(pair, shift, ignored), device)
        return supervised(
            model, inputs, targets, loss, params=params, chunk=chunk, training=training, outputs=chosen, **options
        )

    drawer = Drawer(source, seed)
    drawer.check(samples, lambda pair: next_token(pair, shift, ignored))
    return SampledObjective(model, drawer, build, samples, fixed)


def _split(target: str | None, split: Callable[[Any], Any] | None) -> Split:
    if split is not None and not callable(split):
        raise InputError(f"split={brief(split)}: give a function batch -> (inputs, targets).")
    if split is not None and target is not None:
        raise InputError(f"target={brief(target)} does nothing beside split=, which says what the targets are.")
    if target is not None and not isinstance(target, str):
        raise InputError(f"target={brief(target)}: give the name of the targets in the loader's batches.")
    return Split(target, split)


def _require_count(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{name}={brief(value)}: give an integer of at least {least}.")


def _require_model(model: Any) -> None:
    """Raise for what is no model of one process."""
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be a torch.nn.Module, got {type(model).__name__}.")
    if has_shards(model) or is_named(model, "DistributedDataParallel"):
        raise InputError(
            "from_loader draws for one process: in a loop over several give JumpOptimizer a fixed objective, "
            "js.supervised(model, inputs, targets) of samples that each process has drawn."
        )

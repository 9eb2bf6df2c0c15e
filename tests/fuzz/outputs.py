# ruff: noqa: E731  (tables: one case a line)
"""What a forward method gives back, at smooth places and at kinks."""

from __future__ import annotations

import dataclasses
from collections import namedtuple
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence

import jumpstart as js

from .case import Case, D, Data, Fn, batch, floats, mlp
from .forwards import Forward, between


def kinks() -> Iterator[Case]:
    """At places where the derivative is one-sided, infinite or not a number."""
    zero = lambda: Data(
        torch.cat([floats(4, 3, seed=1), torch.zeros(1, 3, dtype=D)]), floats(5, 2, seed=2), floats(3, 3, seed=3)
    )

    def unbiased(f: Forward) -> Callable[[], nn.Module]:
        return lambda: Fn(f, nn.Linear(3, 4, bias=False), nn.Linear(4, 2)).double()

    for name, f in (
        ("relu, no bias", torch.relu),
        ("abs", torch.abs),
        ("norm", lambda h: h / (1 + h.norm(dim=1, keepdim=True))),
        ("normalize", lambda h: F.normalize(h)),
        ("sqrt", lambda h: h.abs().sqrt()),
        ("sqrt of squares", lambda h: h.square().sum(1, keepdim=True).sqrt().expand(-1, 4)),
        ("x ** 0.5", lambda h: h.square() ** 0.5),
        ("log", lambda h: (h.abs() + 1e-300).log()),
        ("divided", lambda h: h / h.sum(1, keepdim=True)),
        ("where with a trap", lambda h: torch.where(h == 0, torch.zeros_like(h), h.abs().sqrt())),
        ("atan2 at 0", lambda h: torch.atan2(h, h.roll(1, 1))),
        ("max of ties", lambda h: h.amax(1, keepdim=True).expand(-1, 4)),
        ("cosine of zero", lambda h: h * F.cosine_similarity(h, h.roll(1, 1))[:, None]),
    ):
        yield Case(f"kink/{name}, a zero sample", unbiased(between(f)), zero)

    def biases(m: Any) -> nn.Module:
        with torch.no_grad():
            m.a.bias.zero_()
        return m

    for name, f in (
        ("relu", torch.relu),
        ("abs", torch.abs),
        ("hardtanh", lambda h: F.hardtanh(h, 0, 1)),
        ("leaky", lambda h: F.leaky_relu(h, 0.1)),
    ):
        build = lambda f=f: biases(Fn(between(f), nn.Linear(3, 4), nn.Linear(4, 2)).double())
        yield Case(f"kink/{name}, zero biases and a zero sample", build, zero)

    def dead(m: Any) -> nn.Module:
        with torch.no_grad():
            m.a.bias.fill_(-100)
        return m

    yield Case(
        "kink/dead relu",
        lambda: dead(Fn(between(torch.relu), nn.Linear(3, 4), nn.Linear(4, 2)).double()),
        batch(3),
        answers=True,
    )
    yield Case(
        "kink/NaN outputs", lambda: Fn(between(lambda h: h.log()), nn.Linear(3, 4), nn.Linear(4, 2)).double(), batch(3)
    )
    yield Case(
        "kink/infinite outputs",
        lambda: Fn(between(lambda h: 1 / (h - h)), nn.Linear(3, 4), nn.Linear(4, 2)).double(),
        batch(3),
    )
    late = lambda s, x: s.b(s.a(x)).where(
        s.a.weight.sum() == s.a.weight.sum().detach(), torch.tensor(float("nan"), dtype=D)
    )
    yield Case(
        "kink/NaN elsewhere", lambda: Fn(late, nn.Linear(3, 4), nn.Linear(4, 2)).double(), batch(3), answers=True
    )


Named = namedtuple("Named", "logits aux")


@dataclasses.dataclass
class Output:
    logits: Tensor


class Sub(Tensor):
    """A tensor subclass."""


def outputs() -> Iterator[Case]:
    """What a model gives back."""
    answer = lambda wrap, c=2, **kw: Case(
        "", lambda: Fn(lambda s, x: wrap(s.a(x)), mlp(c=c)).double(), kw.pop("data", None) or batch(3, c=c), **kw
    )
    one = batch(3, target=(5,))
    for name, case in (
        ("0-d", answer(lambda u: u.sum(), data=batch(3, target=()))),
        ("0-d by squeeze, n = 1", answer(lambda u: u.squeeze(), c=1, data=batch(3, n=1, target=()))),
        ("1-d", answer(lambda u: u[:, 0], data=one, answers=True)),
        ("1-d by squeeze", answer(lambda u: u.squeeze(), c=1, data=one)),
        ("3-d", answer(lambda u: u.reshape(-1, 2, 1), data=batch(3, target=(5, 2, 1)), answers=True)),
        ("4-d", answer(lambda u: u.reshape(-1, 2, 1, 1), data=batch(3, target=(5, 2, 1, 1)), answers=True)),
        ("transposed", answer(lambda u: u.T, data=batch(3, target=(2, 5)))),
        ("flattened over samples", answer(lambda u: u.reshape(-1), data=batch(3, target=(10,)))),
        ("one row for all", answer(lambda u: u.mean(0, keepdim=True), data=batch(3, target=(1, 2)))),
        ("n rows doubled", answer(lambda u: torch.cat([u, -u]), data=batch(3, target=(10, 2)))),
        ("tuple", answer(lambda u: (u, u))),
        ("tuple of one", answer(lambda u: (u,))),
        ("list", answer(lambda u: [u])),
        ("dict", answer(lambda u: {"logits": u})),
        ("namedtuple", answer(lambda u: Named(u, None))),
        ("dataclass", answer(Output)),
        ("None", answer(lambda u: None)),
        ("a float", answer(lambda u: float(u.detach().sum()))),
        ("integers", answer(lambda u: u.argmax(1))),
        ("booleans", answer(lambda u: u > 0)),
        ("complex", answer(lambda u: torch.view_as_complex(u.reshape(-1, 1, 2)), data=batch(3, target=(5, 1)))),
        ("NumPy", answer(lambda u: u.detach().numpy())),
        ("sparse", answer(lambda u: u.to_sparse())),
        ("a subclass", answer(lambda u: u.as_subclass(Sub))),
        ("empty", answer(lambda u: u[:0], data=batch(3, target=(0, 2)))),
        ("no columns", answer(lambda u: u[:, :0], data=batch(3, target=(5, 0)))),
        ("detached", answer(lambda u: u.detach())),
        ("constant", answer(lambda u: torch.ones_like(u))),
        ("expanded", answer(lambda u: u[:, :1].expand(-1, 2), answers=True)),
        (
            "a view of the input",
            Case(
                "",
                lambda: Fn(lambda s, x: x[:, :2] * s.a.weight[0, 0], nn.Linear(3, 2)).double(),
                batch(3),
                answers=True,
            ),
        ),
        ("the input", Case("", lambda: Fn(lambda s, x: x[:, :2], nn.Linear(3, 2)).double(), batch(3))),
        ("non-contiguous", answer(lambda u: u.T.contiguous().T, answers=True)),
        ("float32 of float64", answer(lambda u: u.float(), coarse=torch.float32)),
        (
            "conjugate view",
            answer(lambda u: torch.view_as_complex(u.reshape(-1, 1, 2)).conj().real, c=2, data=batch(3, target=(5, 1))),
        ),
    ):
        yield dataclasses.replace(case, name=f"output/{name}")
    picked = lambda pick: lambda m, d: js.Objective(m, lambda net: pick(net(d.inputs)), js.losses.mse(d.targets))
    for name, wrap, pick in (
        ("dict, by js.Objective", lambda u: {"logits": u}, lambda o: o["logits"]),
        ("namedtuple, by js.Objective", lambda u: Named(u, None), lambda o: o.logits),
        ("dataclass, by js.Objective", Output, lambda o: o.logits),
    ):
        build = lambda wrap=wrap: Fn(lambda s, x: wrap(s.a(x)), mlp()).double()
        data = lambda: Data(floats(5, 3, seed=1), floats(5, 2, seed=2))
        yield Case(
            f"output/{name}",
            build,
            data,
            objective=picked(pick),
            outputs=lambda m, x, pick=pick: pick(m(x)),
            answers=True,
        )


def sequences() -> Iterator[Case]:
    """Packed sequences."""

    def packed(s: Any, x: Tensor, lengths: Tensor) -> Tensor:
        p = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        return s.b(s.a(p)[1][0][-1] if isinstance(s.a, nn.LSTM) else s.a(p)[1][-1])

    def padded(s: Any, x: Tensor, lengths: Tensor) -> Tensor:
        p = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        return s.b(pad_packed_sequence(s.a(p)[0], batch_first=True)[0].mean(1))

    lengths = torch.tensor([4, 2, 3, 1, 4])
    data = lambda: Data(
        (floats(5, 4, 2, seed=1), lengths), floats(5, 2, seed=2), (floats(2, 4, 2), torch.tensor([2, 4]))
    )
    for kind in (nn.LSTM, nn.GRU):
        for name, f in (("last state", packed), ("padded again", padded)):
            build = lambda kind=kind, f=f: Fn(f, kind(2, 3, batch_first=True), nn.Linear(3, 2)).double()
            yield Case(f"packed/{kind.__name__}, {name}", build, data)
    listed = lambda s, *x: s.b(s.a(pack_sequence(list(x), enforce_sorted=False))[1][-1])
    ragged = lambda: Data((floats(3, 2), floats(2, 2)), floats(2, 2, seed=2))
    yield Case("packed/pack_sequence of a tuple", lambda: Fn(listed, nn.GRU(2, 3), nn.Linear(3, 2)).double(), ragged)


def cases() -> Iterator[Case]:
    for make in (
        kinks,
        outputs,
        sequences,
    ):
        yield from make()

"""Custom derivatives: autograd.Functions of both styles, straight-through tricks, hooks, checkpointing."""

# ruff: noqa: E731  (tables: one case a line)
from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from .case import Case, Fn, batch, mlp


class Double(torch.autograd.Function):
    """2a with its right derivative, in the ctx style."""

    @staticmethod
    def forward(ctx: Any, a: Tensor) -> Tensor:
        return 2 * a

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return 2 * g


class Square(torch.autograd.Function):
    """a² with saved tensors, in the ctx style."""

    @staticmethod
    def forward(ctx: Any, a: Tensor) -> Tensor:
        ctx.save_for_backward(a)
        return a * a

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * g


class SquareSetup(torch.autograd.Function):
    """a², in the setup_context style, batched by torch."""

    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor) -> Tensor:
        return a * a

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.save_for_forward(inputs[0])

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * g


class SquareJvp(SquareSetup):
    @staticmethod
    def jvp(ctx: Any, v: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * v


class SquareNoVmap(SquareSetup):
    generate_vmap_rule = False


class WrongJvp(SquareSetup):
    @staticmethod
    def jvp(ctx: Any, v: Tensor) -> Tensor:
        return 3 * ctx.saved_tensors[0] * v


class WrongFactor(SquareSetup):
    """A derivative that is wrong by a half."""

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return 3 * ctx.saved_tensors[0] * g


class WrongBoth(WrongFactor):
    """Both derivatives wrong, and alike."""

    @staticmethod
    def jvp(ctx: Any, v: Tensor) -> Tensor:
        return 3 * ctx.saved_tensors[0] * v


class Reverse(SquareSetup):
    """Gradient reversal: the identity with derivative −1."""

    @staticmethod
    def forward(a: Tensor) -> Tensor:
        return a.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return -g


class Clip(Reverse):
    """The identity, whose backward clips: not linear in the cotangent."""

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g.clamp(-0.01, 0.01)


class Sign(Reverse):
    """Binarized activations, straight through."""

    @staticmethod
    def forward(a: Tensor) -> Tensor:
        return a.sign()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g


class Nothing(Reverse):
    @staticmethod
    def backward(ctx: Any, g: Tensor) -> None:
        return None


class Once(torch.autograd.Function):
    """Differentiable once, through NumPy."""

    @staticmethod
    def forward(ctx: Any, a: Tensor) -> Tensor:
        ctx.a = a.detach().numpy()
        return torch.from_numpy(ctx.a**2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return torch.from_numpy(2 * ctx.a * g.numpy())


class TwoOutputs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor) -> Any:
        index = a.argmax(1)
        ctx.mark_non_differentiable(index)
        return a * 3, index

    @staticmethod
    def backward(ctx: Any, g: Tensor, _: Any) -> Tensor:
        return 3 * g


def functions() -> Iterator[Case]:
    for name, f in (
        ("ctx", Double.apply),
        ("ctx, saved", Square.apply),
        ("setup_context", SquareSetup.apply),
        ("setup_context and jvp", SquareJvp.apply),
        ("setup_context, no vmap", SquareNoVmap.apply),
        ("wrong jvp", WrongJvp.apply),
        ("wrong factor", WrongFactor.apply),
        ("wrong factor, both ways", WrongBoth.apply),
        ("gradient reversal", Reverse.apply),
        ("gradient clipping", Clip.apply),
        ("sign straight through", Sign.apply),
        ("no gradient", Nothing.apply),
        ("once differentiable, NumPy", Once.apply),
        ("two outputs", lambda a: TwoOutputs.apply(a)[0]),
        ("detached straight-through", lambda a: a + (a.round() - a).detach()),
        ("detached soft straight-through", lambda a: a + (torch.sin(3 * a) - a).detach()),
        ("gradient scaling by detach", lambda a: 0.1 * a + (0.9 * a).detach()),
        ("detach in the middle", lambda a: a * a.detach()),
        ("normalized by a detached norm", lambda a: a / a.detach().norm(dim=1, keepdim=True)),
        ("fake_quantize", lambda a: torch.fake_quantize_per_tensor_affine(a.float(), 0.1, 0, -128, 127).double()),
        ("gumbel hard", lambda a: F.gumbel_softmax(a, hard=True)),
        ("argmax straight through", lambda a: a.softmax(1) + (F.one_hot(a.argmax(1), 5) - a.softmax(1)).detach()),
        ("round", torch.round),
        ("sign", torch.sign),
    ):
        build = lambda f=f: Fn(lambda s, x: s.b(f(s.a(x))), nn.Linear(3, 5), nn.Linear(5, 2)).double()
        yield Case(f"function/{name}", build, batch(3))
    binary = lambda s, x: s.b(torch.tanh(F.linear(x, Sign.apply(s.a.weight), s.a.bias)))
    yield Case("function/binary weights", lambda: Fn(binary, nn.Linear(3, 5), nn.Linear(5, 2)).double(), batch(3))
    rounded = lambda s, x: s.b(F.linear(x, s.a.weight + ((8 * s.a.weight).round() / 8 - s.a.weight).detach()))
    yield Case("function/rounded weights", lambda: Fn(rounded, nn.Linear(3, 5), nn.Linear(5, 2)).double(), batch(3))
    last = lambda s, x: WrongFactor.apply(s.a(x))
    yield Case("function/wrong factor at the end", lambda: Fn(last, mlp()).double(), batch(3))
    mixed = lambda s, x: s.a(x) + s.b(x).detach()
    yield Case("function/a detached branch", lambda: Fn(mixed, mlp(), mlp()).double(), batch(3))
    branch = lambda s, x: s.a(x) + no_grad(s.b, x)
    yield Case("function/a no_grad branch", lambda: Fn(branch, mlp(), mlp()).double(), batch(3))
    target = lambda s, x: s.a(x) - 0.5 * s.a(x + 1).detach()
    yield Case("function/stop-gradient twin", lambda: Fn(target, mlp()).double(), batch(3))


def no_grad(f: Callable[..., Tensor], *x: Tensor) -> Tensor:
    with torch.no_grad():
        return f(*x)


def hooked(attach: Callable[[nn.Module], Any]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        model = mlp().double()
        attach(model)
        return model

    return build


def on_output(hook: Callable[[Tensor], Any]) -> Callable[[], nn.Module]:
    """A hook on the hidden activations' gradient, set in the forward method."""

    def forward(s: Any, x: Tensor) -> Tensor:
        h = torch.tanh(s.a(x))
        if h.requires_grad:
            h.register_hook(hook)
        return s.b(h)

    return lambda: Fn(forward, nn.Linear(3, 5), nn.Linear(5, 2)).double()


def hooks() -> Iterator[Case]:
    seen: list[Any] = []
    for name, attach, good in (
        ("forward, looking", lambda m: m[0].register_forward_hook(lambda *a: seen.clear()), True),
        ("forward, changing", lambda m: m[0].register_forward_hook(lambda m, i, o: 2 * o), True),
        ("forward pre, changing", lambda m: m[2].register_forward_pre_hook(lambda m, i: (i[0] + 1,)), True),
        ("forward with kwargs", lambda m: m[0].register_forward_hook(lambda m, i, k, o: o, with_kwargs=True), True),
        ("forward always called", lambda m: m[0].register_forward_hook(lambda *a: None, always_call=True), True),
        ("forward, storing", lambda m: m[0].register_forward_hook(lambda m, i, o: setattr(m, "last", o)), False),
        ("forward, float()", lambda m: m[0].register_forward_hook(lambda m, i, o: seen.append(float(o.sum()))), False),
        ("full backward, looking", lambda m: m[0].register_full_backward_hook(lambda *a: None), False),
        ("full backward, halving", lambda m: m[2].register_full_backward_hook(lambda m, i, o: (0.5 * i[0],)), False),
        ("full backward pre, looking", lambda m: m[0].register_full_backward_pre_hook(lambda *a: None), False),
        (
            "full backward pre, halving",
            lambda m: m[2].register_full_backward_pre_hook(lambda m, o: (0.5 * o[0],)),
            False,
        ),
        ("backward, legacy", lambda m: m[0].register_backward_hook(lambda *a: None), False),
        ("parameter, looking", lambda m: m[0].weight.register_hook(lambda g: None), False),
        (
            "parameter, masking",
            lambda m: m[0].weight.register_hook(lambda g: g * (torch.arange(5)[:, None] > 1)),
            False,
        ),
        ("parameter, halving", lambda m: m[2].bias.register_hook(lambda g: 0.5 * g), False),
        ("parameter, clipping", lambda m: m[0].weight.register_hook(lambda g: g.clamp(-1e-3, 1e-3)), False),
        ("parameter, post-accumulate", lambda m: m[0].weight.register_post_accumulate_grad_hook(halve), False),
        ("state_dict hooks", lambda m: m.register_state_dict_post_hook(lambda *a: None), True),
    ):
        yield Case(f"hook/{name}", hooked(attach), batch(3), answers=good)
    for name, hook in (
        ("activation, looking", lambda g: None),
        ("activation, halving", lambda g: 0.5 * g),
        ("activation, clipping", lambda g: g.clamp(-0.01, 0.01)),
        ("activation, float()", lambda g: seen.append(float(g.sum()))),
    ):
        yield Case(f"hook/{name}", on_output(hook), batch(3))
    retained = lambda s, x: s.b(keep(torch.tanh(s.a(x))))
    yield Case("hook/retain_grad", lambda: Fn(retained, nn.Linear(3, 5), nn.Linear(5, 2)).double(), batch(3))


def keep(h: Tensor) -> Tensor:
    if h.requires_grad:
        h.retain_grad()
    return h


def halve(p: Tensor) -> None:
    assert p.grad is not None
    p.grad.mul_(0.5)


def checkpoints() -> Iterator[Case]:
    two = lambda forward: lambda: Fn(forward, nn.Linear(3, 5), nn.Linear(5, 2)).double()
    for kind in (True, False):
        name = "reentrant" if kind else "non-reentrant"
        inner = lambda s, x, kind=kind: s.b(
            checkpoint(lambda z: torch.tanh(s.a(z)), x.requires_grad_(), use_reentrant=kind)
        )
        yield Case(f"checkpoint/{name}", two(inner), batch(3))
        middle = lambda s, x, kind=kind: checkpoint(lambda z: s.b(torch.tanh(z)), s.a(x), use_reentrant=kind)
        yield Case(f"checkpoint/{name}, after a layer", two(middle), batch(3))
        chain = lambda s, x, kind=kind: checkpoint_sequential(s.a, 2, x.requires_grad_(), use_reentrant=kind)
        yield Case(f"checkpoint/sequential {name}", lambda chain=chain: Fn(chain, mlp()).double(), batch(3))
    only = lambda s, x: s.b(checkpoint(s.a, x, use_reentrant=False) if s.training else s.a(x))
    yield Case("checkpoint/in train mode alone, eval", lambda: two(only)().eval(), batch(3), answers=True)
    saved = lambda s, x: offloaded(lambda: s.b(torch.tanh(s.a(x))))
    yield Case("checkpoint/save_on_cpu inside", two(saved), batch(3))


def offloaded(f: Callable[[], Tensor]) -> Tensor:
    with torch.autograd.graph.save_on_cpu():
        return f()


def cases() -> Iterator[Case]:
    for make in (functions, hooks, checkpoints):
        yield from make()

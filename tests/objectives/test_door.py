"""Models that torch.func cannot take: a named error with cause and remedy before anything is evaluated."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import jumpstart as js
from jumpstart.errors import InputError
from jumpstart.objectives.door import TABLE, require_traceable

from ..problems import fill, randn

X, Y = randn(0, 6, 3), randn(1, 6, 2)


def plain(**changes):
    return fill(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), 0)


def lazy():
    return nn.Sequential(nn.LazyLinear(4), nn.Tanh(), nn.LazyLinear(2))


def meta():
    return plain().to("meta")


def traced():
    return torch.jit.trace(plain(), X)


def inside_traced():
    return nn.Sequential(torch.jit.trace(fill(nn.Linear(3, 4), 0), X), fill(nn.Linear(4, 2), 1))


def parallel():
    return nn.DataParallel(plain())


def hooked():
    model = plain()
    model[0].register_full_backward_hook(lambda *_: None)
    return model


def pre_hooked():
    model = plain()
    model[2].register_full_backward_pre_hook(lambda *_: None)
    return model


def accumulating():
    model = plain()
    model[2].bias.register_post_accumulate_grad_hook(lambda p: None)
    return model


def expanded():
    model = plain()
    model[0].bias.data = torch.zeros(1).double().expand(4)
    return model


def overlapping():
    model = plain()
    store = torch.zeros(6).double()
    model[0].bias.data, model[2].bias.data = store[:4], store[3:5]
    return model


def made_in_inference_mode():
    with torch.inference_mode():
        return plain()


class Words(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.table, self.out = nn.Embedding(7, 4, **options), nn.Linear(4, 2)

    def forward(self, x):
        return self.out(self.table(x.abs().long()).mean(1))


def sparse():
    return fill(Words(sparse=True), 0)


def quantized():
    return torch.ao.quantization.quantize_dynamic(plain().float(), {nn.Linear})


# model → words of the message: where, why, what to do
CASES = {
    lazy: ["'0.weight'", "lazy", "call the model once"],
    meta: ["'0.weight'", "meta", "load"],
    traced: ["traced", "Python module"],
    inside_traced: ["'0'", "traced"],
    parallel: ["DataParallel", "model.module"],
    hooked: ["'0'", "backward hook", "handle.remove()"],
    pre_hooked: ["'2'", "backward hook", "handle.remove()"],
    accumulating: ["'2.bias'", "accumulated", "handle.remove()"],
    expanded: ["'0.bias'", "expanded", "clone"],
    overlapping: ["0.bias and 2.bias", "share memory"],
    made_in_inference_mode: ["'0.weight'", "inference_mode", "outside"],
    sparse: ["'table'", "sparse", "sparse=False"],
    quantized: ["quantized", "before"],
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_a_model_that_cannot_be_taken_is_refused_by_name(make):
    model, calls = make(), []
    if make is not traced:
        model.register_forward_pre_hook(lambda *_: calls.append(1))
    with pytest.raises(InputError) as caught:
        js.supervised(model, X, Y)
    for word in CASES[make]:
        assert word in str(caught.value), str(caught.value)
    assert not calls, "the model was called"


def test_a_hook_on_all_modules():
    handle = nn.modules.module.register_module_full_backward_hook(lambda *_: None)
    try:
        with pytest.raises(InputError, match="all modules"):
            js.supervised(plain(), X, Y)
    finally:
        handle.remove()
    js.supervised(plain(), X, Y)


def test_what_does_not_move_is_not_asked():
    """The remedies that leave a parameter out do work, and neighbours in one storage are no overlap."""
    js.supervised(sparse(), X, Y, params="out")
    js.supervised(overlapping(), X, Y, params=["0.weight", "0.bias"])
    model, whole = plain(), torch.randn(4, 6).double()
    model[0].weight.data, model[2].weight.data = whole[:, :3], whole[:2, 3:].T.reshape(3, 2).T.repeat(1, 2)[:, :4]
    require_traceable(model, [name for name, _ in model.named_parameters()])
    columns = nn.ParameterList([nn.Parameter(torch.zeros(0)), nn.Parameter(torch.zeros(0))])
    columns[0].data, columns[1].data = whole[:, ::2], whole[:, 1::2]
    require_traceable(columns, ["0", "1"])


def test_every_row_has_a_cause_and_a_remedy():
    assert all(len(row.cause) > 10 and len(row.remedy) > 10 for row in TABLE)
    assert len(TABLE) >= 13


@pytest.mark.parametrize("integer", [torch.float8_e4m3fn])
def test_dtypes_in_which_nothing_can_be_trained(integer):
    model = plain()
    model.scale = nn.Parameter(torch.ones(3).to(integer))
    with pytest.raises(InputError, match=r"'scale' is torch\.float8_e4m3fn.*freeze"):
        js.supervised(model, X, Y)
    js.supervised(model, X, Y, params=["0", "2"])

"""Values in messages: a line each, whatever is given."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import jumpstart as js
from jumpstart.utils.brief import brief


class Unprintable:
    def __repr__(self):
        raise OSError("no")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.arange(900.0).reshape(300, 3), ["(300, 3)", "float32", "0, 1, 2, 3, …"]),
        (np.zeros((900, 2)), ["ndarray", "(900, 2)", "float64"]),
        (torch.tensor(2), ["2"]),
        (torch.zeros(3, device="meta"), ["(3,)"]),
        ([torch.zeros(500)] * 50, ["50 in all", "…"]),
        ({str(i): i for i in range(100)}, ["96 more"]),
        (torch.nn.Linear(3, 4), ["Linear"]),
        ("x" * 500, ["…"]),
        (Unprintable(), ["Unprintable", "OSError"]),
        (3, ["3"]),
    ],
    ids=["tensor", "array", "number", "meta", "list", "dict", "module", "text", "unprintable", "int"],
)
def test_brief(value, words):
    text = brief(value)
    assert "\n" not in text
    assert len(text) < 200
    for word in words:
        assert word in text


def test_messages_do_not_print_what_was_given():
    net, big = torch.nn.Linear(2, 1), torch.rand(300, 3)
    for act in (
        lambda: js.JumpOptimizer(torch.optim.SGD(net.parameters(), 1.0), big, search=True),
        lambda: js.residual(net, js.Term(lambda n, z: n(z), [[0.0, 1.0]] * 500)),
        lambda: js.residual(net, js.Term(lambda n, z: n(z), big[:, :2], weight=-big)),
        lambda: js.supervised(net, big[:, :2], big[:, :1], chunk=big),
        lambda: js.solve(js.supervised(net, big[:, :2], big[:, :1])).damped(big),
        lambda: js.jump(js.supervised(net, big[:, :2], big[:, :1]), search=big),
    ):
        with pytest.raises(js.errors.JumpstartError) as caught:
            act()
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 400

"""Whose fault an exception is that ended a fast way, and what is kept of it."""

from __future__ import annotations

import contextlib

import pytest
import torch

from jumpstart.utils import fallback as fallbacks
from jumpstart.utils.fallback import NotFollowed, described, fallback, ours, theirs


def caught(*owners, error: Exception):
    """The fallback of an error that was raised inside these owners' code, outermost first."""
    with pytest.raises(type(error)) as info, owners[0], owners[-1] if owners[1:] else contextlib.nullcontext():
        raise error
    assert info.value is error, "the exception that the user's code sees is the one that was raised"
    return fallback(error)


def test_the_innermost_owner_counts():
    found = caught(theirs("the residual does not run"), error=KeyError("a"))
    assert (found.reason, found.unexpected) == ("the residual does not run (KeyError: 'a')", False)
    found = caught(theirs("the residual does not run"), ours(), error=KeyError("a"))
    assert found.reason.startswith("unexpected KeyError: 'a' at test_fallback.py:")
    assert found.unexpected
    assert not caught(ours(), theirs("a callback fails"), error=KeyError("a")).unexpected


def test_a_refusal_is_its_reason_wherever_it_is_raised():
    for owners in ([ours()], [theirs("no"), ours()]):
        found = caught(*owners, error=NotFollowed("layer '1' is not known"))
        assert (found.reason, found.unexpected) == ("layer '1' is not known", False)


def test_what_nobody_owns_is_unexpected_and_names_the_librarys_line():
    with pytest.raises(AttributeError) as info:
        fallbacks.Fallback("x").warm("y")
    assert fallback(info.value).unexpected
    with pytest.raises(TypeError) as info:
        described.__call__()
    assert "test_fallback.py:" in fallback(info.value).reason
    with pytest.raises(AttributeError) as info:
        fallback(None)  # type: ignore[arg-type]
    assert " at fallback.py:" in fallback(info.value).reason


def test_long_messages_are_cut_to_one_line():
    assert described(ValueError("\n  first\nsecond")) == "ValueError: first"
    assert described(ValueError()) == "ValueError"
    text = described(ValueError("x" * 1000))
    assert text.endswith("x…")
    assert len(text) == len("ValueError: ") + fallbacks.LENGTH


@pytest.mark.parametrize("error", [MemoryError("none left"), torch.OutOfMemoryError("none left")], ids=repr)
def test_lack_of_memory_is_a_limit_and_no_fault(error):
    found = caught(ours(), error=error)
    assert not found.unexpected and "memory ran out" in found.reason

"""What pictures say in words is what the operators say."""

from __future__ import annotations

import pytest

from jumpstart import errors, trajectory
from jumpstart.report import plots

from .test_recorder import SGD, Run


def test_the_sentences_are_the_operators(tmp_path):
    pytest.importorskip("matplotlib")
    run = Run(n=12, optimizer=lambda p: SGD(p, lr=0.1))
    recorder = trajectory.Recorder(run.objective, optimizer=run.optimizer)
    found = []
    for _ in range(3):
        for _ in range(10):
            run.step()
            recorder.step()
        found.append(recorder.operators())
    figure = trajectory.picture(found, 0.1)
    told = [" ".join(text.get_text().split()) for axis in figure.axes for text in axis.texts]
    last = found[-1]
    assert told[0].startswith(f"{last.rank(0.1)} of 12 directions")
    inside = last.where(last.gradient, 0.1).channel
    assert told[1].startswith(f"{inside:.1%} of the start's gradient")
    assert "° from where it is at the end" in told[2]
    assert plots.save(figure, tmp_path / "run").stat().st_size > 10_000
    one = trajectory.picture(found[0], 0.1)
    assert "nothing to compare" in one.axes[2].texts[0].get_text()
    for wrong in ([], [run.model]):
        with pytest.raises(errors.InputError, match="operators of a Recorder"):
            trajectory.picture(wrong, 0.1)

"""The policy is Llama's, pairs are samples, probabilities are probabilities, and a jump says what it will do."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from experiments.noisy_preferences import jump, pairs, policy, task
from jumpstart.gating import samples as statistics
from jumpstart.report import records


def adapted(seed=0):
    """A toy policy off its start, in float64."""
    model = pairs.toy().policy_of(seed).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p += 0.3 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return model


def wide(rows):
    return {
        key: value.double() if value.is_floating_point() else value for key, value in pairs.toy().batch(rows).items()
    }


@torch.no_grad()
def test_margins_are_what_one_answer_at_a_time_says():
    """Without padding, neighbours, or the other answer beside it: token by token, attention written out."""
    model, data = adapted(), pairs.toy()
    rows = data.known[:5]
    margins = model(**wide(rows))[:, 0]
    for i, row in enumerate(rows.tolist()):
        gained = []
        for j in range(2):
            there = data.present[row, j].bool()
            hidden = data.hidden[row, j, there].double()
            answer = data.tokens[row, j][data.present[row, j, -data.tokens.shape[-1] :].bool()]
            total = sum(
                float(reference(model, hidden[: len(hidden) - len(answer) + k])[int(token)])
                for k, token in enumerate(answer)
            )
            gained.append(total - float(data.reference[row, j]))
        assert float(margins[i]) == pytest.approx(policy.BETA * (gained[0] - gained[1]), abs=1e-6)


def reference(model, hidden):
    """Log-probabilities after the last state, head by head: of Llama's layer as it is published."""
    [layer] = model.layers
    sizes = layer.sizes
    x = norm(hidden, layer.before)
    q, k, v = (part(x) for part in (layer.query, layer.key, layer.value))
    out = []
    for head in range(sizes.heads):
        group = head // (sizes.heads // sizes.groups)
        own = rotated(q[:, head * sizes.head : (head + 1) * sizes.head], sizes)
        at = slice(group * sizes.head, (group + 1) * sizes.head)
        keys = rotated(k[:, at], sizes)
        weights = (keys @ own[-1] / math.sqrt(sizes.head)).softmax(0)
        out.append(weights @ v[:, at])
    h = hidden[-1] + layer.out(torch.cat(out))
    x = norm(h, layer.between)
    h = h + layer.fall(F.silu(layer.gate(x)) * layer.rise(x))
    return model.head(norm(h, model.norm)).log_softmax(-1)


def norm(x, module):
    return module.weight * x / (x.square().mean(-1, keepdim=True) + module.epsilon).sqrt()


def rotated(x, sizes):
    """As complex numbers: place p turns pair i by p θ^(−i/half)."""
    half = sizes.head // 2
    turns = torch.arange(len(x))[:, None] * sizes.theta ** (-torch.arange(half, dtype=x.dtype) / half)
    z = torch.complex(x[:, :half], x[:, half:]) * torch.polar(torch.ones_like(turns), turns)
    return torch.cat([z.real, z.imag], 1)


def test_a_policy_at_its_start_is_the_reference():
    data, model = pairs.toy(), pairs.toy().policy_of(3)
    assert float(data.margins(model, torch.arange(24)).abs().max()) < 1e-6
    batch = data.batch(data.held)
    assert float(policy.divergence(model, data.policy, batch).abs().max()) < 1e-6
    assert (policy.divergence(adapted().float(), data.policy, batch) > 1e-4).all()


def test_margins_hang_on_nobody_else():
    """Columns that are cut, and the order of a batch, change nothing."""
    model, data = adapted().float(), pairs.toy()
    whole = data.margins(model, torch.arange(24))
    for rows in (torch.tensor([5]), torch.tensor([3, 9, 1]), torch.arange(24).flip(0)):
        torch.testing.assert_close(data.margins(model, rows), whole[rows], atol=1e-5, rtol=1e-4)


def test_a_sample_of_exact_statistics_is_a_pair():
    model, rows = adapted(), pairs.toy().known[:6]
    sign = torch.tensor([1.0, -1, 1, 1, -1, 1], dtype=torch.float64)
    own = [p for p in model.parameters() if p.requires_grad]
    with statistics.record(model):
        F.softplus(-sign * model(**wide(rows))[:, 0]).mean().backward()
        found = [statistics.noise(p) for p in own]
    each = [
        torch.autograd.grad(F.softplus(-sign[i] * model(**wide(rows[i : i + 1]))[0, 0]), own) for i in range(len(rows))
    ]
    for mine, noise in zip(zip(*each, strict=True), found, strict=True):
        torch.testing.assert_close(noise, torch.stack(mine).var(0) / len(rows))


def test_swaps_are_of_their_share_and_no_prompt_is_on_both_sides():
    of = partial(task.samples, pairs.toy)
    assert (of(0.0, 1).y == 1).all()
    assert torch.equal(of(0.5, 1).x, of(0.0, 1).x) and not torch.equal(of(0.5, 1).x, of(0.5, 2).x)
    shares = torch.cat([of(0.3, seed).y for seed in range(40)])
    assert float((shares < 0).double().mean()) == pytest.approx(0.3, abs=0.06)
    data = pairs.toy()
    kinds = [set(rows.tolist()) for rows in (data.held, data.others, data.known)]
    assert sorted(i for kind in kinds for i in kind) == list(range(24))  # each pair is of one kind
    prompts = [f"p{i % 7}" for i in range(40)]
    held = pairs.of_others(prompts, 10)
    assert int(held.sum()) >= 10
    assert not {p for p, out in zip(prompts, held, strict=True) if out} & {
        p for p, out in zip(prompts, held, strict=True) if not out
    }


def test_arranged_pairs_hold_prompts_to_the_left_and_answers_from_one_column_on():
    states = [torch.full((n, 2), float(i)) for i, n in enumerate((5, 4, 3, 4))]
    answers = [(torch.arange(3), torch.arange(2)), (torch.arange(2), torch.arange(3))]
    codes = [a for two in answers for a in two]
    hidden, present, tokens = pairs.arranged([torch.zeros(2), torch.zeros(1)], answers, states, codes)
    assert hidden.shape == (2, 2, 5, 2) and tokens.shape == (2, 2, 3)
    assert present.tolist() == [[[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]], [[0, 1, 1, 1, 0], [0, 1, 1, 1, 1]]]
    assert torch.equal(hidden[..., 0].amax(-1), torch.tensor([[0.0, 1], [2, 3]]))


def test_a_jump_says_what_it_will_do_before_it_is_made():
    found = jump.row(pairs.toy, 0.0, 0)
    along = found["along"]
    assert along[0]["horizon"] == 0 and along[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    near = [point for point in along if 0 < point["horizon"] <= found["trusted"]]
    assert near and all(point["predicted"] == pytest.approx(point["loss"], rel=0.1) for point in near)
    assert along[found["chosen"]]["horizon"] <= found["trusted"]
    promised = [point["promised"] for point in along if point["horizon"] <= found["trusted"]]
    assert along[found["chosen"]]["promised"] == min(promised)
    assert all(point["as noisy"] == pytest.approx(point["held-out loss"]) for point in along)  # nothing is swapped


def test_a_quick_run_of_jumps_writes_its_table_and_its_page(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["x", "--quick", "--seeds", "1", "--no-progress", "--out", str(tmp_path)])
    jump.main()
    assert jump.CHOSEN in capsys.readouterr().out
    assert jump.page(records.read(tmp_path)).count(jump.BEST) == 2  # with and without swaps

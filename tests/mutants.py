"""One-line faults of the core that would hurt a user, and the tests that must find each.

``python -m tests.mutants [word]`` breaks a copy of the package in one place at a time, runs the tests named for it, and
prints which mutants were killed; it exits with 1 if one survives. ``tests/test_mutants.py`` does the same.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass

ROOT = pathlib.Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Mutant:
    """``text``, which occurs once in ``file``, becomes ``fault``; one of ``tests`` (below tests/) must then fail."""

    name: str
    file: str
    text: str
    fault: str
    tests: tuple[str, ...]


MUTANTS = [
    Mutant(
        "weights stay half written when a write is interrupted",
        "objectives/objective.py",
        "self.space.write(self.model, theta)\n",
        "pass\n",
        ("jumping/test_jump.py::test_weights_are_put_back_when_a_write_is_interrupted",),
    ),
    Mutant(
        "a metric is not clipped",
        "linearization/metric.py",
        "flat = flat.clamp(max=CLIP * float(flat.median()))",
        'flat = flat.clamp(max=float("inf"))',
        ("linearization/test_metric.py::test_the_largest_entry_is_a_thousand_medians",),
    ),
    Mutant(
        "losses that are integrated cost what squared ones do",
        "surrogate/select.py",
        "RENEWALS = 20.0",
        "RENEWALS = 0.0",
        ("surrogate/test_contract.py::test_losses_that_are_integrated_count_their_renewed_factorizations",),
    ),
    Mutant(
        "a climb goes anywhere",
        "jumping/levenberg_marquardt.py",
        "return (1 - cosine) ** 2 * loss <= memory.best",
        "return 0.0 * loss <= memory.best",
        (
            "jumping/test_levenberg_marquardt.py::test_what_a_course_allows",
            "jumping/test_levenberg_marquardt.py::test_a_whole_march_follows_its_naive_twin",
        ),
    ),
    Mutant(
        "second order is believed at any size",
        "jumping/candidates.py",
        "GEODESIC = 0.5",
        "GEODESIC = math.inf",
        ("jumping/test_candidates.py::test_second_order_is_believed_up_to_half_of_the_first_and_no_further",),
    ),
    Mutant(
        "NaN passes for a loss that fell",
        "jumping/trust.py",
        "return delivered > 0 and hoped > 0 and delivered >= self.floor * hoped",
        "return not (delivered <= 0 or hoped <= 0 or delivered < self.floor * hoped)",
        ("jumping/test_trust.py::test_acceptance",),
    ),
    Mutant(
        "weight decay is no part of the loss that is measured",
        "linearization/problem.py",
        "loss = training + self.metric.penalty(theta)",
        "loss = training",
        ("jumping/test_candidates.py::test_what_is_measured_is_the_real_network",),
    ),
    Mutant(
        "a refused search starts the next where it started itself",
        "jumping/search.py",
        "return Found(Outcome.NO_DECREASE, best, before, result.tried, done, shrunk, hoped)",
        "return Found(Outcome.NO_DECREASE, best, before, result.tried, done, memory, hoped)",
        ("jumping/test_jumper.py::test_a_rejected_jump_keeps_what_was_learned_and_shortens_the_next",),
    ),
    Mutant(
        "a refused step starts the next where it started itself",
        "jumping/levenberg_marquardt.py",
        "memory = memory.at(max(t, 1e-280))",
        "pass",
        ("jumping/test_levenberg_marquardt.py::test_a_rejected_march_changes_nothing_to_the_bit",),
    ),
    Mutant(
        "a jump that was refused is kept as a direction",
        "jumping/jump.py",
        "if best is not None and found.outcome.accepted else None",
        "if best is not None else None",
        ("jumping/test_jump.py::test_rejected_jump_leaves_everything_bit_identical",),
    ),
    Mutant(
        "a jumper goes on although its objective has changed",
        "jumping/jumper.py",
        "        self._known.require(self._objective)\n",
        "",
        ("jumping/test_jumper.py::test_an_objective_that_has_changed_is_refused_and_nothing_moves",),
    ),
    Mutant(
        "a gate is dropped by what-ifs",
        "flow/reduced_flow.py",
        "if basis is None else basis, loss, self.tolerance, self.gate)",
        "if basis is None else basis, loss, self.tolerance)",
        ("flow/test_reduced_flow.py::test_a_gate_stays_under_every_other_condition",),
    ),
    Mutant(
        "the bound of a truncated run forgets damping",
        "flow/truncation_bounds.py",
        " + basis.damping * moved",
        "",
        ("flow/test_truncation_bounds.py::test_a_basis_of_everything_has_no_defect_damped_or_not",),
    ),
    Mutant(
        "the variance of a mean over n samples is taken with n",
        "gating/statistics.py",
        "/ (n - 1)",
        "/ n",
        ("gating/test_rules.py",),
    ),
    Mutant(
        "a damaged file is read",
        "archive/container.py",
        "if tail[-SEAL:] != seal(file).encode():",
        "if False:",
        ("archive/test_container.py::test_every_flipped_bit_is_found",),
    ),
    Mutant(
        "a fit is resumed on other data",
        "fitting/checkpoint.py",
        "        if message:\n",
        "        if False:\n",
        ("fitting/test_checkpoint.py::test_another_problem_is_refused_by_name",),
    ),
    Mutant(
        "a fit lands from where it is instead of from the best weights",
        "fitting/stages.py",
        "stage=Stage.LAND, theta=state.best, loss=state.best_loss",
        "stage=Stage.LAND",
        ("fitting/test_stages.py",),
    ),
    Mutant(
        "an interrupted fit leaves the model where it was",
        "fitting/fit.py",
        "            self.run.write(self.run.state.answer)\n",
        "",
        ("fitting/test_fit.py::test_an_interrupted_run_ends_like_an_uninterrupted_one",),
    ),
    Mutant(
        "weights are kept by the loss that they were trained on, in spite of domains",
        "fitting/collocation.py",
        "        if self.decides and found < state.kept_unseen:\n",
        "        if own < state.kept_unseen:\n",
        ("fitting/test_collocation.py::test_the_answer_is_lowest_on_points_never_trained_on_the_last_jumps_too",),
    ),
    Mutant(
        "points are renewed evenly",
        "objectives/drawn.py",
        "weights = (sizes / mean if mean > 0 else torch.zeros_like(sizes)) + 1",
        "weights = torch.ones_like(sizes)",
        ("objectives/test_drawn.py::test_points_are_drawn_in_proportion_to_the_residual_and_a_constant",),
    ),
    Mutant(
        "a grown set of points weighs more",
        "objectives/collocation.py",
        "self.base * (len(self.points) / len(points)) ** 0.5",
        "self.base",
        ("objectives/test_drawn.py::test_a_grown_set_weighs_as_much",),
    ),
    Mutant(
        "parameters without a rate are jumped along",
        "training/reach.py",
        "if name not in frozen and adapters.moves(groups[name]))",
        "if name not in frozen)",
        ("training/test_jump_optimizer.py::test_groups_with_rate_zero_do_not_jump_wherever_they_stand",),
    ),
    Mutant(
        "Adam's average is not corrected along a record",
        "trajectory/rules.py",
        'found["look"] = 1 / (1 - beta ** float(state["step"]))',
        'found["look"] = 1.0',
        ("trajectory/test_recorder.py::test_momentum_metric_and_decay_are_in_the_operators",),
    ),
    Mutant(
        "a record does not know what the optimizer held at its start",
        "trajectory/rules.py",
        "return flat if bool((flat != 0).any()) else None",
        "return None",
        ("trajectory/test_recorder.py::test_momentum_metric_and_decay_are_in_the_operators",),
    ),
    Mutant(
        "a minibatch counts as much as all samples",
        "trajectory/follower.py",
        "return counts.to(self._theta.dtype) * (n / found.numel())",
        "return counts.to(self._theta.dtype)",
        ("trajectory/test_recorder.py::test_minibatches_are_told_by_their_rows",),
    ),
    Mutant(
        "the fall of the loss is taken at the start of each step",
        "trajectory/propagation.py",
        "product = (columns.gradients + _weighed(quadrature.upto[i], bent)) @ moved.T",
        "product = columns.gradients @ moved.T",
        ("trajectory/test_recorder.py::test_operators_are_the_sums_over_the_steps",),
    ),
    Mutant(
        "left-out runs have the curvature of the real one",
        "trajectory/left_out.py",
        "return replace(columns, gradients=torch.stack(gradients).to(columns.gradients))",
        "return columns",
        ("trajectory/test_left_out.py::test_of_a_linear_model_it_is_the_run_without_the_sample",),
    ),
    Mutant(
        "weights that moved otherwise are not told",
        "trajectory/follower.py",
        "if off > STRAYED >= self.strayed:",
        "if off > 1e9:",
        ("trajectory/test_recorder.py::test_of_minibatches_that_are_not_told_it_warns",),
    ),
    Mutant(
        "batches without replacement have all of the noise",
        "trajectory/diffusion.py",
        "share = 1.0 if replacement else (n - batch) / (n - 1)",
        "share = 1.0",
        ("trajectory/test_diffusion.py::test_the_covariance_is_the_sum_over_past_steps",),
    ),
    Mutant(
        "a way out runs forward in time",
        "trajectory/diffusion.py",
        "pull = self._step.T @ pull",
        "pull = self._step @ pull",
        ("trajectory/test_diffusion.py::test_no_path_costs_less_than_the_action",),
    ),
    Mutant(
        "units that something else reads are scaled all the same",
        "jumping/balanced.py",
        "if not off <= SAME * eps * size:",
        "if not off <= size:",
        ("jumping/test_balanced.py::test_units_that_are_read_elsewhere_are_noticed",),
    ),
    Mutant(
        "columns of a layer are counted twice on the diagonal",
        "linearization/ntk/collocation.py",
        "share.diagonal().mul_(0.5)",
        "share.diagonal().mul_(1.0)",
        ("surrogate/test_damped_cg.py::test_a_gathered_kernel_is_that_of_the_jacobian",),
    ),
    Mutant(
        "a climb on points that move has the usual patience",
        "fitting/stages.py",
        "patience = self.settings.patience * (LONGER if climbing else 1)",
        "patience = self.settings.patience",
        ("fitting/test_collocation.py::test_a_climb_on_points_that_move_has_four_times_the_patience",),
    ),
]


def copied(folder: pathlib.Path, mutant: Mutant | None) -> None:
    """The package and its tests in a folder of their own, broken in one place."""
    cache = shutil.ignore_patterns("__pycache__")
    for name in ("jumpstart", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=cache)
    shutil.copy(ROOT / "pyproject.toml", folder)
    if mutant is not None:
        path = folder / "jumpstart" / mutant.file
        path.write_text(path.read_text().replace(mutant.text, mutant.fault))


def survives(mutant: Mutant | None, tests: tuple[str, ...]) -> bool:
    """Whether the tests pass.

    Raises:
        RuntimeError: they neither pass nor fail: a mutant that cannot be imported, a test that is not there.
    """
    with tempfile.TemporaryDirectory() as name:
        copied(pathlib.Path(name), mutant)
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
        command += [f"tests/{test}" for test in tests]
        table = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
        done = subprocess.run(
            command, cwd=name, env=table | {"PYTHONPATH": name}, capture_output=True, text=True, check=False
        )
    if done.returncode not in (0, 1):
        raise RuntimeError(f"pytest ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.returncode == 0


def main(word: str = "") -> int:
    """Print the table; 1 if a mutant survives, or a test fails without any."""
    chosen = [mutant for mutant in MUTANTS if word in mutant.name]
    tests = tuple(dict.fromkeys(test for mutant in chosen for test in mutant.tests))
    if not survives(None, tests):
        print("the tests fail without a mutant too: nothing can be said.")
        return 1
    alive = 0
    for mutant in chosen:
        survived = survives(mutant, mutant.tests)
        alive += survived
        print(f"{'SURVIVED' if survived else 'killed':<9} {mutant.name}  ({mutant.file})", flush=True)
    print(f"{len(chosen) - alive} of {len(chosen)} killed")
    return 1 if alive or not chosen else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))

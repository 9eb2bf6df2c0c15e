"""Risk carried from one stage to the next: a run that starts where something was fitted on the same samples.

Without sample i the first stage would have ended elsewhere, and the run without it starts there. A leave-one-out that
starts every run from what all samples were fitted to has seen the sample that it leaves out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError
from ..flow.reduced_flow import ReducedFlow
from ..utils.brief import brief


@dataclass(frozen=True)
class Starts:
    """Training outputs after a first stage; the kernel of the second is the one at ``outputs`` for all of them.

    Attributes:
        outputs: (n, …) with every sample. without: (G, n, …) without each of the groups that are left out (one by
            one: without sample i in row i).
    """

    outputs: Tensor
    without: Tensor

    def shifts(self, flow: ReducedFlow, groups: int) -> Tensor:
        """(G, n, …) in float64: how far from the flow's start each run without a group starts.

        Raises:
            InputError: not as many as groups, not finite, of another place than the flow starts from, or with weight
                decay in the flow, whose pull on the shifted weights nobody knows here.
        """
        if self.without.shape != (groups, *flow.u.shape) or self.outputs.shape != flow.u.shape:
            raise InputError(
                f"start: outputs {tuple(self.outputs.shape)} and {tuple(self.without.shape)} without samples, for "
                f"{groups} groups left out of outputs {tuple(flow.u.shape)}: give those of the same samples and groups."
            )
        without, outputs = (found.to(flow.u) for found in (self.without, self.outputs))
        if not bool(torch.isfinite(without).all()):
            raise InputError("start: outputs without some samples are not finite.")
        eps = torch.finfo(flow.basis.lin.u.dtype).eps
        near = 100 * eps**0.75 * max(float(outputs.abs().max()), 1e-300)
        if (off := float((outputs - flow.u).abs().max())) > near:
            raise InputError(
                f"start: the first stage ended {off:.3g} from the outputs that this solution starts from: apply it to "
                "the model (result.apply()), then solve."
            )
        force = flow.basis.decay_force
        if force is not None and bool((force != 0).any()):
            raise InputError("start: runs with weight decay are not carried on; solve without it, or damp the run.")
        return without - outputs


def require(start: object) -> Starts:
    """Raise for what is no :class:`Starts`."""
    if not isinstance(start, Starts):
        raise InputError(f"start={brief(start)}: give what result.without_each() of js.fit_head returns.")
    return start

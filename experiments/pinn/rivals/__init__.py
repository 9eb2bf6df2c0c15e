"""How others train a PINN, as contenders: torch's optimizers, other packages' and methods of papers.

All minimize ½‖residuals‖² of the same points and weights, with an equation's plain-torch residuals; methods that need
the whole Jacobian are given the one that jumps use. Peers are imported when asked for:

    pip install --no-deps pytorch_optimizer==4.1.0 torch-levenberg-marquardt==1.2.3 pytorch-minimize==0.1.0
    pip install --no-deps pytorch-lightning torchmetrics lightning-utilities pyyaml  # torch-levenberg-marquardt's
    pip install --no-deps scimba==1.4.1
"""

from .first_order import adam, adamw, lbfgs, soap
from .natural import anagram, dual, natural_gradient, nystrom, spring
from .packages import least_squares, torch_lm
from .peers import installed, peer
from .quasi_newton import scimba, self_scaled

__all__ = [
    "adam",
    "adamw",
    "anagram",
    "dual",
    "installed",
    "lbfgs",
    "least_squares",
    "natural_gradient",
    "nystrom",
    "peer",
    "scimba",
    "self_scaled",
    "soap",
    "spring",
    "torch_lm",
]

"""A network linearized at its present weights: J, its adjoint, f'', metrics and kernels."""

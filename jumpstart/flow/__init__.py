"""The flow of the linearized run: horizons, the subspace it is restricted to, its modes, bounds and drift."""

"""``solve``: the linearized run, asked for any horizon, on any points, under changed data."""

"""Room for sums over processes, the only place that will know ranks; nothing lives here yet."""

"""Where training ends: the dense kernel and the endpoint against neural-tangents, and how far they scale."""

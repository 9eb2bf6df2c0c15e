"""PINNs trained by jumps and by their rivals: problems with known solutions, and other packages' optimizers on them."""

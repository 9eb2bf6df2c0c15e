"""A learning rate from the spectrum of the kernel at the start."""

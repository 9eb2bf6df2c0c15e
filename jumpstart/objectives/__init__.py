"""What is trained: a model as a pure function, what its outputs are made of, and the loss on them."""

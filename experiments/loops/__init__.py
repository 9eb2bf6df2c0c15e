"""What experiments on training loops share: averages of weights, minibatches, a validation part."""

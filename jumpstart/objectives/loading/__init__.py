"""Objectives of samples drawn from what a training loop already has: a Dataset, a DataLoader, batches."""

"""dense_kernel against the explicit Jacobian, over architectures, routes and calling conventions."""

from __future__ import annotations

import pytest
import torch

from jumpstart.linearization.ntk.dense import dense_kernel

from .kernel_models import (
    LAYERWISE,
    OTHERS,
    SEEDS,
    close,
    explicit,
    make,
)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", [*LAYERWISE, *OTHERS])
class TestAgainstJacobian:
    def test_symmetric(self, name, seed):
        call, params, batch = make(name, seed)
        x, report = batch(6), {}
        k = dense_kernel(call, params, x, report=report)
        close(k, explicit(call, params, x))
        assert torch.equal(k, k.T)
        assert torch.linalg.eigvalsh(k)[0] >= -1e-10 * k.norm()
        assert set(report) == set(params)
        if name in LAYERWISE:
            assert set(report.values()) == {"layerwise"}

    def test_rectangular_with_metric(self, name, seed):
        call, params, batch = make(name, seed)
        x, x2 = batch(6), batch(4)
        metric = {k: torch.rand_like(p) + 0.1 for k, p in params.items()}
        first = next(iter(params))
        metric[first] = torch.full_like(params[first], 0.7)
        close(dense_kernel(call, params, x, x2), explicit(call, params, x, x2))
        close(dense_kernel(call, params, x, metric=metric), explicit(call, params, x, metric=metric))
        k = dense_kernel(call, params, x, x2, metric=metric, chunk_bytes=4000)
        close(k, explicit(call, params, x, x2, metric))

    def test_small_chunks_one_sample_and_subset(self, name, seed):
        call, params, batch = make(name, seed)
        x = batch(5)
        k = dense_kernel(call, params, x, chunk_bytes=1)
        close(k, explicit(call, params, x))
        assert torch.equal(k, k.T)
        x = batch(1)
        close(dense_kernel(call, params, x), explicit(call, params, x))
        some = {k: p for at, (k, p) in enumerate(params.items()) if at % 2}
        close(dense_kernel(call, some, x), explicit(call, some, x))

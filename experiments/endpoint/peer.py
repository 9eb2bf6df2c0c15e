"""neural-tangents behind a pipe: a request a line in, an answer a line out (JSON), arrays by .npz.

``rival.py`` starts this file with another interpreter, one in which neural-tangents 0.6.5 and jax 0.4.30 import;
nothing of jumpstart is imported here. Everything runs in float64 on one thread, compiled ahead of time.
"""

import importlib
import json
import os
import sys
import time
import types
from typing import Any

os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Its TensorFlow front end is not needed, and would import TensorFlow.
sys.modules["neural_tangents.experimental"] = types.ModuleType("neural_tangents.experimental")

jax: Any = importlib.import_module("jax")
jnp: Any = importlib.import_module("jax.numpy")
np: Any = importlib.import_module("numpy")
jax.config.update("jax_enable_x64", True)
# STRUCTURED_DERIVATIVES of 0.6.5 looks for two names where jax 0.4.30 no longer has them.
ad: Any = importlib.import_module("jax.interpreters.ad")
ad.source_info_util = importlib.import_module("jax._src.source_info_util")
ad.config = jax.config
nt: Any = importlib.import_module("neural_tangents")

HOW = {"default": 1, "vector products": 2, "structured": 3}


def network(params: Any, x: Any) -> Any:
    """Two hidden tanh layers; weights are (in, out)."""
    for at, (w, b) in enumerate(params):
        x = x @ w + b
        if at < len(params) - 1:
            x = jnp.tanh(x)
    return x


def peak_bytes() -> int:
    with open("/proc/self/status") as lines:
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def timed(f: Any) -> Any:
    cpu, begun = time.process_time(), time.perf_counter()
    answer = jax.block_until_ready(f())
    return answer, {"seconds": time.perf_counter() - begun, "cpu": time.process_time() - cpu}


class Server:
    """The problem that is loaded, what has been compiled for it, and the kernel computed last."""

    def load(self, path: str) -> dict:
        arrays = np.load(path)
        self.x, self.y, self.q = (jnp.asarray(arrays[key]) for key in "xyq")
        count = sum(key.startswith("w") for key in arrays)
        self.params = [(jnp.asarray(arrays[f"w{i}"]), jnp.asarray(arrays[f"b{i}"])) for i in range(count)]
        self.compiled: dict = {}
        return {"dtype": str(self.x.dtype)}

    def compile(self, how: str, query: bool = False) -> dict:
        """Both kernels keep all outputs apart (trace_axes=()); samples do not interact (vmap_axes=0)."""
        kernel = nt.empirical_ntk_fn(network, trace_axes=(), vmap_axes=0, implementation=HOW[how])
        begun = time.perf_counter()
        if query:
            found = jax.jit(kernel).lower(self.q, self.x, self.params).compile()
        else:
            found = jax.jit(lambda x, params: kernel(x, None, params)).lower(self.x, self.params).compile()
        self.compiled[how, query] = found
        return {"seconds": time.perf_counter() - begun}

    def kernel(self, how: str, save: str | None = None) -> dict:
        self.k = None
        self.k, spent = timed(lambda: self.compiled[how, False](self.x, self.params))
        if save is not None:
            n, _, c, _ = self.k.shape
            np.save(save, np.asarray(self.k).transpose(0, 2, 1, 3).reshape(n * c, n * c))
        return spent

    def solve(self, how: str | None = None) -> dict:
        """A predictor whose eigendecomposition is cached; rate 2 turns its ½·mean of squares into torch's mean.

        ``how`` names the implementation for the kernel of the query points; without one there are none.
        """
        u = network(self.params, self.x)
        self.given = (u, None, None)
        if how is not None:
            kqs = self.compiled[how, True](self.q, self.x, self.params)
            self.given = (u, network(self.params, self.q), kqs)
        self.predictor = nt.predict.gradient_descent_mse(self.k, self.y, learning_rate=2.0, trace_axes=())
        self.jitted = jax.jit(lambda t, given: self.predictor(t, *given))
        _, spent = timed(lambda: self.predictor(jnp.asarray(1.0), *self.given))
        return spent

    def predict(self, times: Any, jit: bool = False, save: str | None = None) -> dict:
        """Outputs at some horizons; ``times`` None is its own way to infinity, a Cholesky solve."""
        if times is None:
            answer, spent = timed(lambda: self.predictor(None, *self.given))
        else:
            t = jnp.asarray(np.asarray(times, dtype=np.float64))
            answer, spent = timed(lambda: self.jitted(t, self.given) if jit else self.predictor(t, *self.given))
        if save is not None:
            np.savez(save, train=np.asarray(answer[0]), test=np.asarray(answer[1]))
        return spent

    def peak(self) -> dict:
        return {"bytes": peak_bytes()}


def main() -> None:
    server = Server()
    for line in sys.stdin:
        request = json.loads(line)
        answer = getattr(server, request.pop("do"))(**request)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()

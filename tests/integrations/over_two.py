"""Programs of accelerate and Lightning that a test runs in two processes: how far each ends from one process alone."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import jumpstart as js

STEPS, ROWS = 60, 48


def net() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 1)).double()


def data() -> tuple[Tensor, Tensor]:
    x = torch.randn(ROWS, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return x, x.sum(1, keepdim=True).sin()


def loader(rows: int) -> Any:
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data()), batch_size=rows)


def wrapped(model: nn.Module, own: slice = slice(None), group: Any = None) -> js.JumpOptimizer:
    x, y = data()
    objective = js.supervised(model, x[own], y[own], group=group)
    return js.JumpOptimizer(torch.optim.AdamW(model.parameters(), lr=1e-2), objective, at=20)


def accelerated(wraps_first: bool) -> tuple[nn.Module, js.JumpOptimizer]:
    """The wrapper made before the model is prepared, or of the prepared one."""
    import accelerate

    accelerator, model = accelerate.Accelerator(cpu=True), net()
    own, batches = slice(accelerator.process_index, None, 2), accelerator.prepare(loader(ROWS // 2))
    if wraps_first:
        optimizer = wrapped(model, own, dist.group.WORLD)
        model, prepared = accelerator.prepare(model, optimizer)
    else:
        model = accelerator.prepare(model)
        optimizer = wrapped(model, own)  # its group is the model's
        prepared = accelerator.prepare(optimizer)
    for _ in optimizer.steps(STEPS):
        for x, y in batches:
            accelerator.backward(nn.functional.mse_loss(model(x), y))
            prepared.step()
            prepared.zero_grad()
    return accelerator.unwrap_model(model), optimizer


def lit(callback: bool) -> tuple[nn.Module, js.JumpOptimizer]:
    """The wrapper made by a callback, or where the module makes its optimizer."""
    import lightning

    from jumpstart.integrations.lightning import JumpCallback
    from jumpstart.integrations.told import inside

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()

        def training_step(self, batch: Any, _: int) -> Tensor:
            return nn.functional.mse_loss(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            if callback:
                return torch.optim.AdamW(self.parameters(), lr=1e-2)
            optimizer = wrapped(self.net, slice(self.global_rank, None, 2), dist.group.WORLD)
            optimizer.total = STEPS
            return optimizer

        def on_train_batch_end(self, *_: Any) -> None:
            jumps = inside(self.trainer.optimizers[0])
            self.trainer.should_stop = jumps.effective_steps >= STEPS

    def objective() -> Any:
        (x, y), own = data(), slice(module.global_rank, None, 2)
        return js.supervised(module.net, x[own], y[own], group=dist.group.WORLD)

    module = Module()
    trainer = lightning.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_steps=STEPS, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[JumpCallback(objective, at=20)] * callback,
    )  # fmt: skip
    trainer.fit(module, loader(ROWS // 2))
    return module.net, inside(trainer.optimizers[0])


KINDS = {
    "accelerate, wrapped first": lambda: accelerated(True),
    "accelerate, prepared first": lambda: accelerated(False),
    "lightning, callback": lambda: lit(True),
    "lightning, module": lambda: lit(False),
}


def main() -> None:
    torch.set_num_threads(1)
    model, optimizer = KINDS[sys.argv[1]]()
    assert dist.get_world_size() == 2
    reference, (x, y) = net(), data()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the reference is of this process alone, as it should be
        alone = wrapped(reference)
    for _ in alone.steps(STEPS):
        nn.functional.mse_loss(reference(x), y).backward()
        alone.step()
        alone.zero_grad()
    pairs = zip(model.parameters(), reference.parameters(), strict=True)
    apart = max(float((p - q).abs().max()) for p, q in pairs)
    same = (optimizer.taken, optimizer.skipped) == (alone.taken, alone.skipped)
    print(f"\nRESULT {dist.get_rank()} {optimizer.skipped} {same} {apart}\n", flush=True)


if __name__ == "__main__":
    main()

"""Lightning's own Trainer, with the callback: the same fit, of which most steps are skipped."""

import logging
import warnings

import pytest
import torch
from torch import nn

import jumpstart as js
from jumpstart.errors import InputError

pytestmark = pytest.mark.integrations
lightning = pytest.importorskip("lightning.pytorch")

from jumpstart.integrations.lightning import JumpCallback  # noqa: E402
from jumpstart.integrations.told import inside  # noqa: E402

STEPS = 120


def data():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(1000, 4, generator=g)
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()


class Module(lightning.LightningModule):
    def __init__(self, optimizers=1):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 3))
        self.count = optimizers

    def training_step(self, batch, _):
        return nn.functional.cross_entropy(self.body(batch[0]), batch[1])

    def configure_optimizers(self):
        made = [torch.optim.SGD(self.parameters(), 0.1, momentum=0.5) for _ in range(self.count)]
        if self.count > 1:
            self.automatic_optimization = False
            return made
        schedule = torch.optim.lr_scheduler.LinearLR(made[0], 1.0, 0.01, STEPS)
        return {"optimizer": made[0], "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def fit(folder, module, *callbacks, steps=STEPS, batch=1000, checkpoint=None, **settings):
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.manual_seed(0)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data()), batch_size=batch)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning)
        warnings.filterwarnings("ignore", module="lightning")
        settings = {"max_steps": steps, "gradient_clip_val": 1.0, "enable_checkpointing": False, **settings}
        trainer = lightning.Trainer(
            default_root_dir=str(folder), accelerator="cpu", logger=False, enable_progress_bar=False,
            enable_model_summary=False, callbacks=list(callbacks), **settings,
        )  # fmt: skip
        trainer.fit(module, loader, ckpt_path=checkpoint)
    return trainer, inside(trainer.optimizers[0])


def objective(module):
    return js.supervised(module.body, *data(), loss="cross_entropy")


def outputs(module):
    with torch.no_grad():
        return module.body(data()[0])


@pytest.mark.parametrize("limit", ["steps", "epochs"])
def test_the_fit_ends_where_the_bare_one_ends_in_a_few_steps(tmp_path, limit):
    bare, module = Module(), Module()
    start = outputs(bare)
    limits = {} if limit == "steps" else {"max_steps": -1, "max_epochs": STEPS}
    fit(tmp_path, bare, **limits)
    trainer, jumps = fit(tmp_path, module, JumpCallback(objective(module), skip=40), **limits)
    assert jumps.effective_steps == STEPS
    assert trainer.global_step == jumps.taken <= STEPS / 3
    assert jumps.action.options["clip"] == 1.0
    assert jumps.param_groups[0]["lr"] == pytest.approx(0.001)
    end = outputs(bare)
    assert torch.linalg.vector_norm(outputs(module) - end) < 0.03 * torch.linalg.vector_norm(end - start)


def test_a_fit_without_jumps_is_lightnings_own_to_the_bit(tmp_path):
    bare, module = Module(), Module()
    fit(tmp_path, bare, steps=20, batch=100)
    _, jumps = fit(tmp_path, module, JumpCallback(objective(module), at=()), steps=20, batch=100)
    assert (jumps.taken, jumps.jumps) == (20, 0)
    assert torch.equal(outputs(module), outputs(bare))


def test_a_resumed_fit_goes_on_to_the_bit(tmp_path):
    whole, again = Module(), Module()
    saves = lightning.callbacks.ModelCheckpoint(str(tmp_path), "{step}", every_n_train_steps=5, save_top_k=-1)
    jumping = JumpCallback(objective(whole), skip=40)
    _, one = fit(tmp_path, whole, jumping, saves, enable_checkpointing=True)
    assert one.skipped > 10
    _, other = fit(tmp_path, again, JumpCallback(objective(again), skip=40), checkpoint=str(tmp_path / "step=5.ckpt"))
    assert (other.taken, other.skipped, other.effective_steps) == (one.taken, one.skipped, STEPS)
    assert torch.equal(outputs(again), outputs(whole))


def test_more_optimizers_than_one_are_refused(tmp_path):
    module = Module(optimizers=2)
    with pytest.raises(InputError, match="2 optimizers"):
        fit(tmp_path, module, JumpCallback(objective(module)), steps=1, gradient_clip_val=None)
    with pytest.raises(InputError, match="objective must be"):
        JumpCallback(3)

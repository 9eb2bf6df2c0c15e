"""The page on trainers is run where their packages are installed."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import jumpstart as js

pytestmark = pytest.mark.integrations
PAGE = Path(__file__).resolve().parents[2] / "docs" / "trainers.md"


def test_code_on_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where lightning leaves its logs
    for name in ("accelerate", "lightning", "transformers"):
        pytest.importorskip(name)
    import lightning.pytorch as lightning
    import transformers

    from .test_huggingface import Net as Classifier

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(4, 3)

        def training_step(self, batch, _):
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    torch.manual_seed(0)
    x, y = torch.randn(64, 4), torch.randint(0, 3, (64,))
    space = {
        "js": js,
        "torch": torch,
        "x": x,
        "y": y,
        "net": nn.Linear(4, 3),
        "model": Classifier(),
        "module": Module(),
        "dataset": [{"x": a, "labels": b} for a, b in zip(x, y, strict=True)],
        "loader": torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=64),
        "arguments": transformers.TrainingArguments(str(tmp_path), max_steps=20, use_cpu=True, report_to=[]),
    }
    blocks = re.findall(r"```py\n(.*?)```", PAGE.read_text(), flags=re.S)
    assert len(blocks) == 3
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), space)
    assert space["optimizer"].effective_steps >= 20

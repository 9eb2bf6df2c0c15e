"""LoRA fine-tuning of the upper layers of pretrained models, on cached outputs of the lower ones."""

"""Make a Llama of two layers with random weights: _random_llama.py TOKENIZER_FOLDER FOLDER. Run by vLLM's own Python.

Input and output embeddings are not shared, and weights are large (0.3): so the next token depends on the whole prompt,
and its logit leads by more than float32 loses from one batch to another.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def main(tokenizer: Path, folder: Path) -> None:
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=49152, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=8192, bos_token_id=1, eos_token_id=2,
        initializer_range=0.3, tie_word_embeddings=False,
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        if (tokenizer / name).exists():
            shutil.copy(tokenizer / name, folder / name)
    LlamaForCausalLM(config).float().save_pretrained(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

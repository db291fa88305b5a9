import builtins
import json

import pytest

from rlkd_nemo import tasks, tokenizer
from rlkd_nemo.config.schema import ExpressionsTask, TokenizerConfig
from rlkd_nemo.errors import ConfigError, InputError
from rlkd_nemo.interfaces import Tokenizer
from rlkd_nemo.tokenizer import (
    ByteTokenizer,
    HuggingFaceTokenizer,
    SymbolTokenizer,
    end_of_its_own,
    require_compatible,
)


def test_longest_symbol_wins():
    tokens = SymbolTokenizer(["a", "ab", "abc", "<", "<t>"])
    # pad 0, eos 1, then in order: a 2, ab 3, abc 4, < 5, <t> 6
    assert tokens.encode("abcaba<t><") == [4, 3, 2, 6, 5]
    assert tokens.decode([0, 4, 3, 2, 6, 5, 1, 0]) == "abcaba<t><"
    assert tokens.vocab_size == 7 and tokens.pieces()[:3] == ["<pad>", "<eos>", "a"]


def test_text_outside_the_vocabulary_names_position_and_character():
    with pytest.raises(InputError, match="position 2, character 'x'"):
        SymbolTokenizer(["a"]).encode("aaxa")
    # The specials are ids, never text.
    with pytest.raises(InputError, match="position 0, character '<'"):
        SymbolTokenizer(["a"]).encode("<eos>")


@pytest.mark.parametrize("symbols", [["a", "a"], ["a", ""], ["<pad>"], ["<eos>", "b"]])
def test_symbols_must_be_distinct(symbols):
    with pytest.raises(ConfigError, match="distinct"):
        SymbolTokenizer(symbols)


def test_the_expressions_vocabulary_is_32_and_covers_the_task():
    task = tasks.build(ExpressionsTask())
    tokens = tokenizer.build(TokenizerConfig(), task)
    assert isinstance(tokens, Tokenizer) and tokens.vocab_size == 32
    for problem in task.generate("train", 0, "13", 3):
        text = problem.prompt + problem.teacher_paths[0]
        ids = tokens.encode(text)
        assert tokens.decode(ids) == text
        # a step is 8 tokens, the end 4 (</think> <answer> v </answer>)
        assert len(tokens.encode(problem.teacher_paths[0])) == 13 * 8 + 4


def test_bytes():
    tokens = ByteTokenizer()
    assert tokens.encode("aé") == [0x61, 0xC3, 0xA9]
    assert tokens.decode([256, 0x61, 0xC3, 0xA9, 257]) == "aé"
    assert tokens.decode([0xC3]) == "\ufffd"
    assert len(tokens.pieces()) == tokens.vocab_size == 258 and tokens.pieces()[65] == "<0x41>"
    with pytest.raises(InputError, match="position 1"):
        tokens.encode("a\ud800")


@pytest.fixture
def saved(tmp_path):
    """Writes a word-level tokenizer directory."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    def save(config, name="t"):
        backend = Tokenizer(models.WordLevel({"one": 0, "two": 1, "?": 2, "</s>": 3, "far": 6}, unk_token="?"))
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        backend.add_special_tokens([AddedToken("<think>", special=True)])
        directory = tmp_path / name
        directory.mkdir()
        backend.save(str(directory / "tokenizer.json"))
        if config is not None:
            (directory / "tokenizer_config.json").write_text(json.dumps(config))
        return directory

    return save


def test_hugging_face_directory(saved):
    tokens = tokenizer.build(TokenizerConfig("huggingface", str(saved({"eos_token": {"content": "</s>"}}))), None)
    assert isinstance(tokens, HuggingFaceTokenizer)
    assert tokens.eos_id == tokens.pad_id == 3
    assert tokens.encode("one <think> far") == [0, tokens.pieces().index("<think>"), 6]
    assert "<think>" in tokens.decode(tokens.encode("<think> one") + [3])
    assert "</s>" not in tokens.decode([0, 3])
    # ids 4 or 5 were never given out: a hole, but the size counts it
    assert tokens.pieces()[4] == "" and tokens.vocab_size == len(tokens.pieces())


@pytest.mark.parametrize(
    ("config", "message"),
    [(None, "tokenizer_config.json"), ({}, "eos_token"), ({"eos_token": "<end>"}, "<end>"), ([], "eos_token")],
)
def test_a_directory_without_end_of_text(saved, config, message):
    with pytest.raises(InputError, match=message):
        HuggingFaceTokenizer(saved(config))


def test_unreadable_directories(tmp_path):
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        HuggingFaceTokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read|can read"):
        HuggingFaceTokenizer(tmp_path)


def test_a_missing_package_is_one_sentence(monkeypatch, tmp_path):
    real = builtins.__import__

    def absent(name, *args, **kwargs):
        if name == "tokenizers":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(InputError, match="pip install tokenizers"):
        HuggingFaceTokenizer(tmp_path)


def test_build_refuses_what_does_not_fit():
    task = tasks.build(ExpressionsTask())
    assert isinstance(tokenizer.build(TokenizerConfig("bytes"), task), ByteTokenizer)
    with pytest.raises(ConfigError, match="task, bytes, huggingface"):
        tokenizer.build(TokenizerConfig("byte"), task)
    with pytest.raises(ConfigError, match=r"model\.tokenizer\.type"):
        tokenizer.build(TokenizerConfig("huggingface"), task)


class Pieces:
    def __init__(self, *pieces, eos=1):
        self._pieces, self.eos_id = list(pieces), eos

    def pieces(self):
        return list(self._pieces)


def test_compatible_up_to_unused_rows_at_the_end():
    require_compatible(Pieces("a", "b"), Pieces("a", "b"))
    require_compatible(Pieces("a", "b"), Pieces("a", "b", "", ""))
    require_compatible(Pieces("a", "", "b", "", eos=2), Pieces("a", "", "b", eos=2))


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        (("a", "c"), "token id 1 is 'b' to the student and 'c' to the teacher"),
        (("b", "a"), "token id 0 is 'a' to the student and 'b'"),
        (("a",), "token id 1 is 'b' to the student and no token"),
        (("a", "b", "c"), "token id 2 is no token to the student and 'c'"),
    ],
)
def test_incompatible_pieces_name_the_first_id(teacher, message):
    with pytest.raises(ConfigError, match=message):
        require_compatible(Pieces("a", "b"), Pieces(*teacher))


def test_equal_sizes_are_not_enough():
    first, second = SymbolTokenizer(["x", "y"]), SymbolTokenizer(["y", "x"])
    with pytest.raises(ConfigError, match="token id 2 is 'x'"):
        require_compatible(first, second)


def test_another_end_of_text_is_refused():
    with pytest.raises(ConfigError, match=r"id 1 \('b'\), the teacher with id 0 \('a'\)"):
        require_compatible(Pieces("a", "b"), Pieces("a", "b", eos=0))


def test_a_teacher_that_ends_otherwise_is_not_heard_at_the_student_s_end(tmp_path):
    student = SymbolTokenizer(["a", "<end>"])
    assert end_of_its_own(student, tmp_path) is None  # a checkpoint of our own
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<eos>"}))
    assert end_of_its_own(student, tmp_path) is None
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<end>"}}))
    assert end_of_its_own(student, tmp_path) == student.eos_id

"""Text to token ids and back: a closed vocabulary, UTF-8 bytes, or a Hugging Face tokenizer directory."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rlkd_nemo.config.schema import TokenizerConfig
from rlkd_nemo.errors import ConfigError, InputError
from rlkd_nemo.interfaces import Task, Tokenizer

PAD, EOS = "<pad>", "<eos>"


class SymbolTokenizer:
    """A closed vocabulary; at each position the longest symbol wins. Ids 0 and 1 are padding and end of text.

    Args: symbols: distinct, non-empty, without the two specials; their order is their id from 2 on.
    Raises: ConfigError for symbols that could not be told apart.
    """

    def __init__(self, symbols: Sequence[str]) -> None:
        pieces = [PAD, EOS, *symbols]
        doubtful = sorted({piece for piece in pieces if not piece or pieces.count(piece) > 1})
        if doubtful:
            raise ConfigError(
                f"a task's symbols must be distinct, not empty and other than {PAD} and {EOS}; found {doubtful}"
            )
        self._pieces = pieces
        self._ids = {piece: index for index, piece in enumerate(pieces)}
        longest_first = sorted(symbols, key=len, reverse=True)
        self._symbol = re.compile("|".join(re.escape(symbol) for symbol in longest_first) or r"(?!)")
        self.vocab_size, self.pad_id, self.eos_id = len(pieces), 0, 1

    def encode(self, text: str) -> list[int]:
        """Ids of `text`. Raises InputError with the position of the first character that starts no symbol."""
        ids, position = [], 0
        while position < len(text):
            found = self._symbol.match(text, position)
            if found is None:
                raise InputError(
                    f"no symbol starts at position {position}, character {text[position]!r}, of {_around(text, position)!r}; "
                    f"wanted one of {' '.join(self._pieces[2:])}. model.tokenizer.library=task knows the task's symbols only"
                )
            ids.append(self._ids[found.group()])
            position = found.end()
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`; padding and end of text are left out."""
        return "".join(self._pieces[i] for i in ids if i not in (self.pad_id, self.eos_id))

    def pieces(self) -> list[str]:
        """The string of every id."""
        return list(self._pieces)


class ByteTokenizer:
    """UTF-8 bytes: ids 0-255 are bytes, 256 is padding, 257 end of text. No files, any text, long sequences."""

    vocab_size, pad_id, eos_id = 258, 256, 257

    def encode(self, text: str) -> list[int]:
        """Bytes of `text`. Raises InputError on half a surrogate pair, which has no UTF-8."""
        try:
            return list(text.encode("utf-8"))
        except UnicodeEncodeError as err:
            raise InputError(
                f"character {text[err.start]!r} at position {err.start} of {_around(text, err.start)!r} has no UTF-8 form; "
                "wanted whole characters"
            ) from err

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`; bytes that are no UTF-8 become U+FFFD, as a half-trained model writes them."""
        return bytes(i for i in ids if i < 256).decode("utf-8", errors="replace")

    def pieces(self) -> list[str]:
        """`<0x41>` for byte 65, and the two specials."""
        return [*(f"<0x{i:02X}>" for i in range(256)), PAD, EOS]


class HuggingFaceTokenizer:
    """A saved fast tokenizer: `tokenizer.json` beside `tokenizer_config.json`, which names the end-of-text token.

    Ids without a token (holes) have the piece "". Without a padding token the end of text pads; no loss reads padding.
    Chat templates are the caller's business: a prompt is encoded as it stands.

    Raises: InputError when a file is missing or unreadable, or names no usable end of text.
    """

    def __init__(self, path: str | Path) -> None:
        try:
            import tokenizers
        except ImportError as err:
            raise InputError(
                "model.tokenizer.library=huggingface needs the package `tokenizers`; install it with: pip install tokenizers"
            ) from err
        directory = Path(path)
        file = directory / "tokenizer.json"
        if not file.is_file():
            raise InputError(
                f"model.tokenizer.type={path}: there is no tokenizer.json; wanted a directory that a fast tokenizer was "
                "saved in (save_pretrained of transformers writes one)"
            )
        try:
            self._backend = tokenizers.Tokenizer.from_file(str(file))
        except Exception as err:  # the library raises nothing narrower for a file it cannot read
            raise InputError(f"{file} is no tokenizer that the package `tokenizers` can read: {err}") from err
        vocabulary = self._backend.get_vocab(with_added_tokens=True)
        self._pieces = [""] * (max(vocabulary.values()) + 1)
        for piece, index in vocabulary.items():
            self._pieces[index] = piece
        self.vocab_size = len(self._pieces)
        names = _special_names(directory / "tokenizer_config.json")
        for key, name in names.items():
            if name not in vocabulary:
                raise InputError(
                    f"{directory / 'tokenizer_config.json'}: {key}={name!r} is no token of tokenizer.json; "
                    "wanted two files of one model"
                )
        self.eos_id = vocabulary[names["eos_token"]]
        self.pad_id = vocabulary[names.get("pad_token", names["eos_token"])]

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, no special token added. Raises InputError on half a surrogate pair."""
        try:
            return self._backend.encode(text, add_special_tokens=False).ids
        except (TypeError, UnicodeEncodeError) as err:
            raise InputError(f"{text[:60]!r} cannot be encoded: {err}; wanted text of whole characters") from err

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`; only padding and end of text are left out, so that <think> and its like stay."""
        kept = [i for i in ids if i not in (self.pad_id, self.eos_id)]
        return self._backend.decode(kept, skip_special_tokens=False)

    def pieces(self) -> list[str]:
        """The string of every id, "" where an id has none."""
        return list(self._pieces)


def build(tokenizer_cfg: TokenizerConfig, task: Task) -> Tokenizer:
    """The tokenizer that `model.tokenizer` asks for.

    Raises: ConfigError for a library that does not exist or does not fit the task; InputError for unusable files.
    """
    library = tokenizer_cfg.library
    if library == "task":
        symbols = task.symbols()
        if symbols is None:
            raise ConfigError(
                "model.tokenizer.library=task wants a task with a closed vocabulary, this one is free text; "
                "wanted bytes or huggingface"
            )
        return SymbolTokenizer(symbols)
    if library == "bytes":
        return ByteTokenizer()
    if library == "huggingface":
        if not tokenizer_cfg.type:
            raise ConfigError(
                "model.tokenizer.type is not set; library=huggingface wants the tokenizer's directory there"
            )
        return HuggingFaceTokenizer(tokenizer_cfg.type)
    raise ConfigError(f"model.tokenizer.library={library!r} is unknown; wanted one of task, bytes, huggingface")


def require_compatible(student: Tokenizer, teacher: Tokenizer) -> None:
    """The teacher's log-probs belong to the student's ids only if every id means the same text to both.

    Equal sizes prove nothing, so pieces are compared one by one. Rows at the end without a piece (padding of the
    vocabulary) may differ in number, and so may the padding token, which no loss reads.
    Raises: ConfigError naming the first id that differs and both strings.
    """
    mine, theirs = _without_unused_tail(student.pieces()), _without_unused_tail(teacher.pieces())
    for index in range(max(len(mine), len(theirs))):
        ours = mine[index] if index < len(mine) else None
        other = theirs[index] if index < len(theirs) else None
        if ours != other:
            raise ConfigError(
                f"token id {index} is {_shown(ours)} to the student and {_shown(other)} to the teacher; wanted one "
                "vocabulary. Choose a teacher (teacher.restore_from_path) of the student's family, or model.tokenizer"
            )
    if student.eos_id != teacher.eos_id:
        raise ConfigError(
            f"the student ends a text with id {student.eos_id} ({mine[student.eos_id]!r}), the teacher with id "
            f"{teacher.eos_id} ({mine[teacher.eos_id]!r}); wanted the same end of text (eos_token of the tokenizers)"
        )


def end_of_its_own(student: Tokenizer, directory: str | Path) -> int | None:
    """The student's end-of-text id if a teacher of the same vocabulary ends its texts with another token; else None.

    Such a teacher gives the student's end next to no probability wherever it stands (Qwen3's Base models end with
    <|endoftext|>, the post-trained ones with <|im_end|>): its term is left out there (arXiv:2609.04108).
    Args: directory: the teacher's; one without tokenizer_config.json, a checkpoint of our own, ends as the student does.
    Raises: InputError when its tokenizer_config.json cannot be used.
    """
    file = Path(directory) / "tokenizer_config.json"
    if not file.is_file():
        return None
    return student.eos_id if _special_names(file)["eos_token"] != student.pieces()[student.eos_id] else None


def _special_names(file: Path) -> dict[str, str]:
    """`eos_token` and, if there is one, `pad_token`."""
    try:
        config: Any = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise InputError(f"{file} cannot be read ({err}); wanted the tokenizer's config with its eos_token") from err
    names = {}
    for key in ("eos_token", "pad_token"):
        value = config.get(key) if isinstance(config, dict) else None
        # Saved either as text or as an added token with its flags.
        value = value.get("content") if isinstance(value, dict) else value
        if isinstance(value, str):
            names[key] = value
    if "eos_token" not in names:
        raise InputError(f"{file} names no eos_token; wanted the text of the end-of-text token there")
    return names


def _without_unused_tail(pieces: list[str]) -> list[str]:
    while pieces and not pieces[-1]:
        pieces.pop()
    return pieces


def _shown(piece: str | None) -> str:
    return "no token" if not piece else repr(piece)


def _around(text: str, position: int) -> str:
    return text[max(0, position - 20) : position + 20]

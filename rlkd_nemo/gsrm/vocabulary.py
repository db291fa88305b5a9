"""A small closed vocabulary for a small GSRM, as a Hugging Face tokenizer directory with a chat template.

Words of the training texts, the fixed parts of the reply's form, and single characters for everything else that ASCII
can write; what is none of these is one unknown token. The word that marks a fence is different in every prompt and
says nothing to a model that was trained on fences: the tokenizer reads the whole mark as one token.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rlkd_nemo.errors import ConfigError

PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"
ROLES = ("system", "user", "assistant")
# The parts of a reply in JSON that are the same in every reply, as `schema.write` writes them.
REPLY_PIECES = (
    '{"steps": [{"meta": "', '", "question": "', '", "answer": "', '"}, {"meta": "', '"}]}', '{"steps": []}', "yes", "no",
)  # fmt: skip
_FENCES = (("<<<[0-9a-f]{16}\n", "<<<"), ("\n[0-9a-f]{16}>>>", ">>>"))  # as gsrm/fence.py writes them, and what is read
_WORD = re.compile(r" ?[A-Za-z]{2,}")
_CHAT = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}"
    "{% if message.role == 'assistant' %}<eos>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def write_tokenizer(directory: str | Path, texts: Iterable[str], max_words: int = 1000) -> Path:
    """Write `directory` and return it. Equal texts give equal files.

    Args: texts: what the model will read; its `max_words` most frequent words become tokens.
    Raises: ConfigError without the package `tokenizers`.
    """
    try:
        from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
        from tokenizers.models import WordLevel
    except ImportError as err:
        raise ConfigError("a vocabulary needs the package `tokenizers`: pip install tokenizers") from err
    counts: Counter[str] = Counter()
    for text in texts:
        for mark, read in _FENCES:
            text = re.sub(mark, read, text)
        counts.update(_WORD.findall(text))
    words = sorted(sorted(counts), key=lambda word: -counts[word])[:max_words]
    special = [PAD, EOS, UNKNOWN, *(f"<{role}>" for role in ROLES)]
    characters = ["\n", *map(chr, range(32, 127))]
    pieces = list(dict.fromkeys([*special, *characters, *(read for _, read in _FENCES), *REPLY_PIECES, *sorted(words)]))
    tokenizer = Tokenizer(WordLevel({piece: index for index, piece in enumerate(pieces)}, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Replace(Regex(mark), read) for mark, read in _FENCES])
    longest_first = sorted((piece for piece in pieces[len(special) :] if len(piece) > 1), key=len, reverse=True)
    pattern = "|".join([*map(re.escape, longest_first), r"[\s\S]"])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(piece, special=True, normalized=False) for piece in special])
    path = Path(directory)
    path.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path / "tokenizer.json"))
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": EOS,
        "pad_token": PAD,
        "unk_token": UNKNOWN,
        "clean_up_tokenization_spaces": False,
    }
    (path / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (path / "chat_template.jinja").write_text(_CHAT)
    # Where a generation ends, for servers that read it from here.
    (path / "generation_config.json").write_text(
        json.dumps({"eos_token_id": pieces.index(EOS), "pad_token_id": pieces.index(PAD)}, indent=2) + "\n"
    )
    return path

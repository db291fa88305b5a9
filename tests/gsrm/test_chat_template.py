"""The text that a model is trained on is the text that an inference server gives it."""

import json

import pytest

from rlkd_nemo.errors import InputError
from rlkd_nemo.gsrm.chat_template import ChatTemplate
from rlkd_nemo.gsrm.vocabulary import write_tokenizer

MESSAGES = [
    {"role": "system", "content": "You compare."},
    {"role": "user", "content": "  A & B <b>\n"},
    {"role": "assistant", "content": "yes"},
    {"role": "user", "content": "C?"},
]
# Written for this test with what templates of well-known models use: trimmed blocks, loop control, filters, a special token.
TEMPLATE = """{{- bos_token -}}
{%- for m in messages %}
    {%- if m.role == 'system' and loop.first %}
        {{- '[S]' + m.content | trim + '\n' }}
        {%- continue %}
    {%- endif %}
    {{- '<|' + m.role + '|>\n' + m.content | tojson + eos_token + '\n' }}
{%- endfor %}
{% if add_generation_prompt %}
<|assistant|>
{% endif %}"""
TEXT = (
    '<s>[S]You compare.\n<|user|>\n"  A & B <b>\\n"</s>\n<|assistant|>\n"yes"</s>\n<|user|>\n"C?"</s>\n<|assistant|>\n'
)


def directory(path, **config):
    path.mkdir()
    (path / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": {"content": "<s>"}, "eos_token": "</s>", **config})
    )
    return path


@pytest.mark.parametrize("where", ["file", "config", "list"])
def test_as_transformers_renders_it(where, tmp_path):
    listed = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": TEMPLATE}]
    found = directory(
        tmp_path / "a", **({} if where == "file" else {"chat_template": TEMPLATE if where == "config" else listed})
    )
    if where == "file":
        (found / "chat_template.jinja").write_text(TEMPLATE)
    assert ChatTemplate(found).prompt(MESSAGES) == TEXT


def test_transformers_agrees(tmp_path):
    transformers = pytest.importorskip("transformers")
    path = write_tokenizer(tmp_path / "t", ["You compare things"])
    tokens = transformers.AutoTokenizer.from_pretrained(path)
    for template in (TEMPLATE.replace("bos_token", "pad_token"), (path / "chat_template.jinja").read_text()):
        (path / "chat_template.jinja").write_text(template)
        wanted = tokens.apply_chat_template(
            MESSAGES, chat_template=template, tokenize=False, add_generation_prompt=True
        )
        assert ChatTemplate(path).prompt(MESSAGES) == wanted


def test_what_cannot_be_used_is_named(tmp_path):
    with pytest.raises(InputError, match="has no chat template"):
        ChatTemplate(directory(tmp_path / "a"))
    with pytest.raises(InputError, match=r"tokenizer_config\.json cannot be read"):
        ChatTemplate(tmp_path)
    with pytest.raises(InputError, match="cannot be read"):
        ChatTemplate(directory(tmp_path / "b", chat_template="{% for %}"))
    refusing = ChatTemplate(directory(tmp_path / "c", chat_template="{{ raise_exception('no system turn') }}"))
    with pytest.raises(InputError, match="no system turn"):
        refusing.prompt(MESSAGES)
    curious = ChatTemplate(directory(tmp_path / "d", chat_template="{{ messages.__class__.__mro__ }}"))
    with pytest.raises(InputError, match="unsafe"):
        curious.prompt(MESSAGES)

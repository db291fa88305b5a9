import json

import pytest

from rlkd_nemo.errors import InputError
from rlkd_nemo.tasks.chat import INSTRUCTION, Chat

CHATML = (
    "{%- for message in messages %}\n    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}\n"
    "{%- endfor %}\n{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n"
)


@pytest.fixture
def directory(tmp_path):
    def write(template, apart=False, **more):
        config = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", **more}
        if apart:
            (tmp_path / "chat_template.jinja").write_text(template)
        elif template is not None:
            config["chat_template"] = template
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        return str(tmp_path)

    return write


def test_plain_text_opens_the_thinking():
    assert Chat(None).prompt("1+1?") == f"User: {INSTRUCTION}\n\n1+1?\nAssistant: <think>\n"


@pytest.mark.parametrize("apart", [True, False])
def test_a_template_of_qwen_s_kind(directory, apart):
    asked = f"<|im_start|>user\n{INSTRUCTION}\n\n1+1?<|im_end|>\n"
    assert Chat(directory(CHATML, apart)).prompt("1+1?") == f"{asked}<|im_start|>assistant\n<think>\n"


def test_special_tokens_named_templates_and_a_template_that_thinks_by_itself(directory):
    named = [{"name": "tools", "template": "x"}, {"name": "default", "template": "{{ bos_token }}A<think>\n"}]
    assert Chat(directory(named)).prompt("q") == "<s>A<think>\n"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (None, "has no chat template"),
        ("{% for %}", "TemplateSyntaxError"),
        ("{{ raise_exception('only tools') }}", "only tools"),
        ("{{ messages | nothing }}", "No filter named"),
        ("{{ 1 + messages[0].content }}", "TypeError"),
    ],
)
def test_templates_that_cannot_be_used(directory, template, words):
    with pytest.raises(InputError, match="task.chat_template=") as caught:
        Chat(directory(template))
    assert words in str(caught.value)


def test_a_date_does_not_change_the_prompts_from_day_to_day(directory):
    assert Chat(directory("{{ strftime_now('%d %b %Y') }}:")).prompt("q") == "26 Jul 2024:<think>\n"


def test_a_directory_without_a_tokenizer(tmp_path):
    with pytest.raises(InputError, match=r"tokenizer_config\.json cannot be read"):
        Chat(str(tmp_path))

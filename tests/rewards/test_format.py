import pytest

from rlkd_nemo.rewards.format import form, tags

# The prompt ends in <think>.
GIVEN = [
    ("x</think><answer>1</answer>", 1, 1),
    ("\nx\n</think>\n<answer>\n1\n</answer>\n", 1, 1),
    ("</think><answer></answer>", 1, 1),
    ("x</think><answer>1</answer>\nmore", 1, 1),  # later text is tolerated, from the next line on
    ("x</think><answer>1</answer> more", 0, 1),
    ("x</think><answer>1", 0, 0.75),
    ("x<answer>1</answer>", 0, 0.75),
    ("<answer>1</answer></think>", 0, 1),
    ("x</think> so <answer>1</answer>", 0, 1),
    ("<think>x</think><answer>1</answer>", 1, 0.75),  # the opening tag twice
    ("x</think></think><answer>1</answer>", 1, 0.75),
    ("", 0, 0.25),
]


@pytest.mark.parametrize(("text", "form_value", "tag_value"), GIVEN)
def test_after_a_given_opening_tag(rollout, text, form_value, tag_value):
    assert (form(rollout(text)).value, tags(rollout(text)).value) == (form_value, tag_value)


@pytest.mark.parametrize(
    ("text", "form_value", "tag_value"),
    [("<think>x</think><answer>1</answer>", 1, 1), ("x</think><answer>1</answer>", 0, 0.75), ("", 0, 0)],
)
def test_the_student_opens_the_thinking(rollout, text, form_value, tag_value):
    made = rollout(text, prompt="What is 1?")
    assert (form(made).value, tags(made).value) == (form_value, tag_value)


def test_a_truncated_response_has_no_form(rollout, path):
    assert form(rollout(path)).value == 1 and form(rollout(path, truncated=True)).value == 0
    assert tags(rollout(path, truncated=True)).value == 1

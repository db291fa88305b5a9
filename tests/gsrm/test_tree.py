import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlkd_nemo.errors import ConfigError, InputError
from rlkd_nemo.gsrm.alignment import structure_reward
from rlkd_nemo.gsrm.judge import ExactJudge
from rlkd_nemo.gsrm.tree import merge, tree_reward
from rlkd_nemo.types import Step


def walk(student, references, judge, norm="teacher"):
    return tree_reward(student, references, merge(references, judge), judge, norm)


def test_references_share_nodes_as_long_as_they_agree(judge, letters):
    references = [letters("a c b"), letters("c a b"), letters("a c! d")]
    # nodes: 0 a, 1 a-c, 2 a-c-b, 3 c, 4 c-a, 5 c-a-b, 6 a-c-d
    assert merge(references, judge) == [[0, 1, 2], [3, 4, 5], [0, 1, 6]]


def test_any_branch_that_continues_the_match_counts(judge, letters):
    references = [letters("a c b"), letters("c a b")]
    result, reference = walk(letters("c a b"), references, judge)
    assert (result.reward, reference, result.parts_at) == (1, 1, None)
    # c, then a; then x on no branch: 2 of 3
    result, reference = walk(letters("c a x"), references, judge)
    assert result.reward == pytest.approx(2 / 3) and (reference, result.parts_at, result.matched) == (1, 2, 2)
    assert not result.verdicts[-1].meta
    # branches may not be mixed: after a comes c, not b
    assert walk(letters("a b"), references, judge)[0].reward == pytest.approx(1 / 3)


def test_divides_by_the_shortest_reference_through_the_last_match(judge, letters):
    references = [letters("a b c d"), letters("a e"), letters("f")]
    assert walk(letters("a"), references, judge)[0].reward == 1 / 2  # through a: 4 and 2 steps
    assert walk(letters("a b"), references, judge)[0].reward == 2 / 4
    assert walk(letters("a b"), references, judge, "none")[0].reward == 2
    result, reference = walk(letters("x"), references, judge)
    assert (result.reward, result.n_teacher, reference) == (0, 1, 2)


def test_extra_steps_after_a_finished_reference_are_free(judge, letters):
    result, _ = walk(letters("a b c"), [letters("a b")], judge)
    assert result.reward == 1 and result.parts_at is None


def test_merged_steps_give_the_best_of_their_wordings(judge):
    references = [[Step("a", "q1", "1")], [Step("a", "q2", "2"), Step("b")]]
    assert walk([Step("a", "q2", "2")], references, judge)[0].reward == 1
    # a mixture agrees with neither wording whole
    assert walk([Step("a", "q1", "2")], references, judge)[0].reward == 0.5


steps = st.lists(
    st.builds(Step, st.sampled_from("ab"), st.none() | st.sampled_from("12"), st.none() | st.sampled_from("12")),
    max_size=5,
)


@settings(max_examples=150, deadline=None)
@given(steps, steps.filter(bool), st.sampled_from(["teacher", "none"]))
def test_one_reference_is_the_prefix_rule(student, teacher, norm):
    result, reference = walk(student, [teacher], ExactJudge(), norm)
    assert result == structure_reward(student, teacher, ExactJudge(), norm) and reference == 0


def test_what_a_tree_cannot_do(judge, letters):
    with pytest.raises(InputError, match="each with steps"):
        merge([letters("a"), []], judge)
    with pytest.raises(ConfigError, match=r"gsrm\.norm='max'"):
        walk(letters("a"), [letters("a")], judge, "max")

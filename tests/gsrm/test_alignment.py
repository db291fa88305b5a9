import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlkd_nemo.errors import ConfigError, InputError
from rlkd_nemo.gsrm.alignment import structure_reward
from rlkd_nemo.gsrm.judge import ExactJudge
from rlkd_nemo.types import Step

# n_student, n_teacher, verdicts on meta, question, answer; weights; sum, / n_teacher, / max; judge calls
VECTORS = {
    "stop at first mismatch": (4, 4, "yyny", "ynyy", "yyyy", [1, 0.5, 0, 0], 1.5, 0.375, 0.375, 3 + 2 + 2),
    "both halved": (3, 5, "yyy", "yyn", "ynn", [1, 0.5, 0.25], 1.75, 0.35, 0.35, 3 + 3 + 3),
    "student has extra steps": (6, 2, "yy", "yy", "yy", [1, 1], 2, 1, 1 / 3, 2 + 2 + 2),
    "first meta differs": (3, 3, "n", "", "", [0, 0, 0], 0, 0, 0, 1),
}


@pytest.mark.parametrize("case", VECTORS)
@pytest.mark.parametrize("norm", ["none", "teacher", "max"])
def test_vectors(case, norm, scripted, steps_of):
    n_student, n_teacher, meta, question, answer, weights, *rewards, calls = VECTORS[case]
    judge = scripted(meta, question, answer)
    result = structure_reward(steps_of("s", n_student), steps_of("t", n_teacher), judge, norm)
    assert list(result.weights) == weights
    assert result.reward == pytest.approx(dict(zip(("none", "teacher", "max"), rewards))[norm], abs=1e-12)
    assert len(judge.calls) == calls
    assert (result.n_student, result.n_teacher) == (n_student, n_teacher)
    assert result.matched == (meta + "n").index("n")


def test_an_unparseable_student_is_zero_without_a_call(scripted, steps_of):
    judge = scripted()
    result = structure_reward([], steps_of("t", 3), judge)
    assert (result.reward, result.matched, result.weights, result.parts_at) == (0, 0, (), 0) and not judge.calls


def test_a_missing_teacher_is_no_score(judge, steps_of):
    with pytest.raises(InputError, match="no steps"):
        structure_reward(steps_of("s", 1), [], judge)


def advantages(structure):
    """The published weights 15/10/10/15 on (accuracy, format, tag, structure), population deviation."""
    parts = numpy.array([(1, 1, 1), (1, 1, 0.75), (0, 1, 1), (0, 0, 0.25)])
    rewards = parts @ [15, 10, 10] + 15 * numpy.array(structure)
    return rewards, (rewards - rewards.mean()) / rewards.std()


def test_the_norm_decides_which_rollout_is_preferred(scripted, steps_of):
    first, third = (
        [
            structure_reward(steps_of("s", a), steps_of("t", b), scripted(*verdicts), norm).reward
            for norm in ("teacher", "none")
        ]
        for a, b, *verdicts in (VECTORS["stop at first mismatch"][:5], VECTORS["both halved"][:5])
    )
    rewards, found = advantages([first[0], 0, third[0], 0])
    assert rewards == pytest.approx([40.625, 32.5, 25.25, 2.5])
    assert found == pytest.approx([1.084979657408, 0.512779432406, 0.002200770096, -1.599959859910], abs=1e-11)
    # Un-normalised, a right answer gets a negative advantage and a wrong one a positive.
    rewards, found = advantages([first[1], 0, third[1], 0])
    assert rewards == pytest.approx([57.5, 32.5, 46.25, 2.5])
    assert found == pytest.approx([1.108225234886, -0.106268173208, 0.561703201243, -1.563660262921], abs=1e-11)


def test_missing_fields(judge):
    def reward(student, teacher):
        return structure_reward([student], [teacher], judge).reward

    assert reward(Step("m"), Step("m", "q", "a")) == 0.25  # leaving fields out is no way to keep the credit
    assert reward(Step("m", "q"), Step("m", "q", "a")) == 0.5
    assert reward(Step("m", "q", "a"), Step("m")) == 1  # nothing to compare with
    assert reward(Step("", "q", "a"), Step("", "q", "a")) == 0  # an empty meta agrees with nothing
    assert [kind for kind, *_ in judge.calls] == ["meta", "meta", "question", "meta"]


def test_where_they_part_and_why(judge, letters):
    result = structure_reward(letters("a b! x d"), letters("a b c d"), judge)
    assert result.parts_at == 2 and result.matched == 2
    assert [(v.student, v.teacher, v.meta, v.question, v.answer, v.weight) for v in result.verdicts] == [
        (0, 0, True, True, True, 1), (1, 1, True, True, False, 0.5), (2, 2, False, None, None, 0),
    ]  # fmt: skip
    assert structure_reward(letters("a b c"), letters("a b"), judge).parts_at is None
    assert structure_reward(letters("a"), letters("a b"), judge).parts_at == 1


def test_monotone_survives_an_inserted_step(judge, letters):
    student, teacher = letters("a x b c"), letters("a b c")
    assert structure_reward(student, teacher, judge).reward == pytest.approx(1 / 3)
    result = structure_reward(student, teacher, judge, alignment="monotone")
    assert (result.reward, result.matched, result.weights, result.parts_at) == (1, 3, (1, 1, 1), None)
    assert [(v.student, v.teacher) for v in result.verdicts] == [(0, 0), (2, 1), (3, 2)]


def test_monotone_keeps_the_order_and_pairs_once(judge, letters):
    # b a against a b: only one of them fits in order
    assert structure_reward(letters("b a"), letters("a b"), judge, alignment="monotone").reward == 0.5
    # two equal student steps, one teacher step; and the better of the two is taken
    result = structure_reward(letters("a! a"), letters("a b"), judge, alignment="monotone")
    assert (result.reward, result.weights, result.parts_at) == (0.5, (1, 0), 1)
    assert structure_reward(letters("a x a"), letters("a a"), judge, "max", "monotone").reward == pytest.approx(2 / 3)


words = st.lists(st.sampled_from(["a", "b", "c", "a!", "b!"]), min_size=1, max_size=6)


@settings(max_examples=150, deadline=None)
@given(words, words, st.sampled_from(["teacher", "none", "max"]))
def test_monotone_is_never_below_prefix_and_is_the_best(student, teacher, norm):
    mine, theirs = ([Step(w[0], "q", "0" if w.endswith("!") else "1") for w in ws] for ws in (student, teacher))
    prefix = structure_reward(mine, theirs, ExactJudge(), norm)
    monotone = structure_reward(mine, theirs, ExactJudge(), norm, "monotone")
    assert monotone.reward >= prefix.reward - 1e-12 and sum(monotone.weights) <= min(len(mine), len(theirs))
    if norm != "none":
        assert 0 <= prefix.reward <= 1 and 0 <= monotone.reward <= 1

    def best(i, j):  # every order-preserving pairing, by brute force
        if i == len(mine) or j == len(theirs):
            return 0.0
        credit = (1.0 if mine[i].answer == theirs[j].answer else 0.5) if mine[i].meta == theirs[j].meta else 0.0
        return max(best(i + 1, j), best(i, j + 1), credit + best(i + 1, j + 1))

    assert sum(monotone.weights) == best(0, 0)


@pytest.mark.parametrize(
    ("norm", "alignment", "message"), [("mean", "prefix", "gsrm.norm='mean'"), ("teacher", "free", "gsrm.alignment")]
)
def test_unknown_names(norm, alignment, message, judge, steps_of):
    with pytest.raises(ConfigError, match=message):
        structure_reward(steps_of("s", 1), steps_of("t", 1), judge, norm, alignment)

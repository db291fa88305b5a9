import pytest

from rlkd_nemo.config.schema import Gsrm, Reward
from rlkd_nemo.errors import ConfigError, ServiceError
from rlkd_nemo.rewards.blend import EmbeddedScorer
from rlkd_nemo.types import Failure, Rollout


class DeadJudge:
    name = "dead"

    def same(self, kind, teacher, student, problem):
        raise ServiceError("down")


def test_weights_are_used_as_given(scorer, rollout, path):
    # all components 1: 3 + 3 + 2 + 2
    (score,) = scorer().score([rollout()])
    assert score.valid and score.reward == 10
    assert {name: part.value for name, part in score.components.items()} == {
        "outcome": 1, "format": 1, "tag": 1, "structure": 1,
    }  # fmt: skip
    # wrong answer in the block only: structure 1, format 1, tag 1
    (score,) = scorer({"outcome": 15, "structure": 15, "format": 10, "tag": 10}).score(
        [rollout(path.replace("<answer>1", "<answer>2"))]
    )
    assert score.reward == 35


def test_one_score_a_rollout_in_order(scorer, rollout, path):
    scores = scorer().score([rollout(), rollout("</think>"), rollout()])
    # nothing but the given and the closing tag: 2 * 2/4
    assert [score.reward for score in scores] == [10, 1, 10] and scorer().score([]) == []


def test_a_weighted_component_without_value_makes_the_row_invalid(scorer, rollout):
    (score,) = scorer(judge=DeadJudge()).score([rollout()])
    assert not score.valid and score.reward is None and score.components["outcome"].value == 1
    assert score.components["structure"].failure is Failure.JUDGE_FAILED


def test_weight_zero_is_logged_and_cannot_invalidate(scorer, rollout):
    (score,) = scorer({"structure": 0}).score([rollout()])
    assert score.reward == 7 and score.components["structure"].value == 1
    (score,) = scorer({"structure": 0}, judge=DeadJudge()).score([rollout()])
    assert score.reward == 7 and score.components["structure"].failure is Failure.JUDGE_FAILED


def test_a_reference_that_nobody_asked_for_is_no_failure(scorer, rollout):
    (score,) = scorer({"structure": 0}).score([rollout(paths=())])
    assert score.reward == 7 and "structure" not in score.components
    (score,) = scorer().score([rollout(paths=())])
    assert not score.valid and score.components["structure"].failure is Failure.REFERENCE_MISSING


def test_structure_only_if_correct(scorer, rollout, path):
    wrong = rollout(path.replace("<answer>1", "<answer>2"))
    (plain,) = scorer().score([wrong])
    (strict, right) = scorer({"structure_only_if_correct": True}).score([wrong, rollout()])
    assert (plain.reward, strict.reward, right.reward) == (7, 4, 10)
    assert strict.components["structure"].value == 1  # logged as it is
    (missing,) = scorer({"structure_only_if_correct": True}, judge=DeadJudge()).score([wrong])
    assert not missing.valid


def test_a_truncated_response(scorer, rollout):
    # outcome 0, format 0, tag 1/4 (the given one), structure 1 of 3 steps: 3/3 + 2/4
    (score,) = scorer().score([rollout("a:1+2=3;c:3*", truncated=True)])
    assert score.reward == pytest.approx(1.5) and score.components["outcome"].failure is Failure.TRUNCATED


def test_own_worked_examples_score_full_marks(scorer, task):
    problems = task.generate("test", 0, "3-4", 30)
    rollouts = [Rollout(p, i, 0, [], [], [], p.teacher_paths[0], False, 0, 1.0) for i, p in enumerate(problems)]
    assert [score.reward for score in scorer().score(rollouts)] == [10] * 30
    pairs = task.demonstrations("train", 0, "3-4", 60, strategies=["right", "random"], noise=0.35)
    noisy = [Rollout(p, i, 0, [], [], [], text, False, 0, 1.0) for i, (p, text) in enumerate(pairs)]
    values = [score.components["structure"].value for score in scorer().score(noisy)]
    assert 0.2 < sum(values) / len(values) < 0.8


@pytest.mark.parametrize("settings", [Gsrm(judge="llm"), Gsrm(decomposer="llm"), Gsrm(norm="mean")])
def test_unknown_names(task, tmp_path, settings):
    with pytest.raises(ConfigError, match="wanted one of"):
        EmbeddedScorer(task, Reward(), settings, tmp_path)

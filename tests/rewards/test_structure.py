import pytest

from rlkd_nemo.config.schema import Gsrm
from rlkd_nemo.errors import ConfigError, ServiceError
from rlkd_nemo.gsrm.decompose import TextDecomposer
from rlkd_nemo.gsrm.judge import ExactJudge
from rlkd_nemo.gsrm.references import ReferenceStore
from rlkd_nemo.rewards.structure import StructureReward
from rlkd_nemo.tasks.expressions import decompose
from rlkd_nemo.types import Component, Failure, Notation, Step
from tests.rewards.conftest import PATH, RIGHT_FIRST


class Failing:
    """Decomposer or judge that fails on the texts (or kinds) that it is told to."""

    version = name = "failing"

    def __init__(self, error, on):
        self.error, self.on = error, on

    def decompose(self, problem, text):
        if text == self.on:
            raise self.error
        return decompose(text)

    def same(self, kind, teacher, student, problem):
        if kind == self.on:
            raise self.error
        return teacher == student


@pytest.fixture
def structure(tmp_path):
    def make(decomposer=None, judge=None, **settings):
        return StructureReward(
            decomposer or TextDecomposer(Notation("e", decompose)),
            judge or ExactJudge(),
            ReferenceStore(tmp_path),
            Gsrm(**settings),
        )

    return make


def test_agreement_and_its_reasons(structure, rollout):
    # Second step: right letter, wrong answer (half); third: its question differs, its answer agrees (half).
    part = structure()(rollout("a:1+2=3;c:3*4=1;b:3-1=1;</think><answer>1</answer>"))
    assert part.value == pytest.approx(2 / 3) and part.failure is None
    detail = part.detail
    assert detail["student_steps"][1] == Step("c", "3*4", "1") and detail["teacher_steps"][1] == Step("c", "3*4", "2")
    assert (detail["parts_at"], detail["matched"], detail["weights"]) == (None, 3, [1, 0.5, 0.5])
    assert detail["verdicts"][1] == {"student": 1, "teacher": 1, "meta": True, "question": True, "answer": False}
    assert structure()(rollout(RIGHT_FIRST)).value == 0 and structure()(rollout(RIGHT_FIRST)).detail["parts_at"] == 0


def test_a_student_without_steps(structure, rollout):
    part = structure()(rollout("hm</think><answer>1</answer>"))
    assert (part.value, part.failure) == (0.0, Failure.UNPARSEABLE_STUDENT) and len(part.detail["teacher_steps"]) == 3


def test_a_truncated_response_counts_with_the_steps_it_has(structure, rollout):
    part = structure()(rollout("a:1+2=3;c:3*", truncated=True))
    assert part.value == pytest.approx(1 / 3) and part.failure is None


@pytest.mark.parametrize(
    ("mode", "paths"), [("first", ()), ("first", ("no steps", PATH)), ("best", (PATH, "no")), ("tree", (PATH, "no"))]
)
def test_a_missing_reference_is_no_score(structure, rollout, mode, paths):
    part = structure(reference_mode=mode)(rollout(paths=paths))
    assert (part.value, part.failure) == (None, Failure.REFERENCE_MISSING) and part.detail["error"]


def test_first_reads_the_first_only(structure, rollout):
    assert structure()(rollout(paths=(PATH, "no steps"))).value == 1


def caused(cause):
    error = ServiceError("no answer")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (ServiceError("bad reply"), None),
        (TimeoutError(), Failure.TIMEOUT),
        (caused(TimeoutError()), Failure.TIMEOUT),
        (ConnectionRefusedError(), Failure.BACKEND_UNAVAILABLE),
        (caused(ConnectionResetError()), Failure.BACKEND_UNAVAILABLE),
    ],
)
@pytest.mark.parametrize(
    ("role", "on", "own"),
    [
        ("decomposer", PATH, Failure.DECOMPOSER_FAILED),
        ("decomposer", RIGHT_FIRST, Failure.DECOMPOSER_FAILED),
        ("judge", "meta", Failure.JUDGE_FAILED),
        ("judge", "answer", Failure.JUDGE_FAILED),
    ],
)
@pytest.mark.parametrize("mode", ["first", "best", "tree"])
def test_failures_of_the_system_have_a_type_and_no_value(structure, rollout, error, failure, role, on, own, mode):
    reward = structure(**{role: Failing(error, on)}, reference_mode=mode)
    paths = (PATH, "c:3*4=2;b:1-1=0;") if mode != "first" else (PATH,)
    part = reward(rollout(RIGHT_FIRST if role == "decomposer" else PATH, paths=paths))
    assert (part.value, part.failure) == (None, failure or own)
    assert type(error).__name__ in part.detail["error"]


@pytest.mark.parametrize(("role", "on"), [("decomposer", PATH), ("judge", "meta")])
def test_a_fault_of_the_program_is_raised(structure, rollout, role, on):
    with pytest.raises(KeyError):
        structure(**{role: Failing(KeyError("x"), on)})(rollout())


def test_best_and_tree_take_the_branch_that_the_student_took(structure, rollout):
    made = rollout(RIGHT_FIRST, paths=(PATH, RIGHT_FIRST))
    assert structure()(made).value == 0
    for mode in ("best", "tree"):
        part = structure(reference_mode=mode)(made)
        assert part.value == 1 and part.detail["reference"] == 1 and part.detail["teacher_steps"][0].meta == "c"


def test_monotone_and_norms(structure, rollout):
    inserted = rollout("a:1+2=3;e:1+1=2;c:3*4=2;b:3-2=1;</think><answer>1</answer>")
    assert structure()(inserted).value == pytest.approx(1 / 3)
    assert structure(alignment="monotone")(inserted).value == 1
    assert structure(alignment="monotone", norm="max")(inserted).value == 0.75
    assert structure(norm="none")(inserted).value == 1


def test_references_are_decomposed_once(structure, rollout):
    texts = []

    class Counting(TextDecomposer):
        def decompose(self, problem, text):
            texts.append(text)
            return super().decompose(problem, text)

    reward = structure(decomposer=Counting(Notation("e", decompose)))
    for _ in range(3):
        reward(rollout(RIGHT_FIRST))
    assert texts.count(PATH) == 1 and texts.count(RIGHT_FIRST) == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reference_mode": "all"}, "first, best, tree"),
        ({"norm": "mean"}, "gsrm.norm"),
        ({"alignment": "free"}, "gsrm.alignment"),
        ({"reference_mode": "tree", "norm": "max"}, "tree with"),
        ({"reference_mode": "tree", "alignment": "monotone"}, "tree with"),
    ],
)
def test_settings_that_do_not_exist_or_go_together(structure, settings, message):
    with pytest.raises(ConfigError, match=message):
        structure(**settings)


def test_a_component_with_a_value_did_not_fail():
    with pytest.raises(ValueError, match="no value if and only if"):
        Component(0.0, Failure.JUDGE_FAILED)

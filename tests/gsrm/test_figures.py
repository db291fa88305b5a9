"""Shares of counts, by hand."""

from rlkd_nemo.gsrm.alignment import structure_reward
from rlkd_nemo.gsrm.dataset import DecompositionRow
from rlkd_nemo.gsrm.figures import StepFigures, VerdictFigures, table


def test_steps_found_against_steps_labelled(judge, letters):
    figures = StepFigures()
    # Labelled a b c; found a b! x: aims a and b are right, the step a alone is.
    cases = [("a b! x", "a b c"), ("a b", "a b"), ("", "a b"), ("a", ""), ("", "")]
    for found, labelled in cases:
        row = DecompositionRow("r", "math", "p", "t", tuple(letters(labelled)))
        steps = letters(found)
        result = structure_reward(steps, row.steps, judge, "none", "monotone") if steps and row.steps else None
        figures.parse()
        figures.compare(steps, row, result)
    figures.fail("bad_reply")
    figures.fail("timeout")
    figures.parse()
    figures.fail("judge_timeout", parsed=True)
    shares = figures.shares()
    # Right steps: 1 + 2; found: 3 + 2 + 1; labelled: 3 + 2 + 2. Aims: 2 + 2.
    assert shares["steps"] == {"precision": 3 / 6, "recall": 3 / 7, "f1": 6 / 13}
    assert shares["aims"] == {"precision": 4 / 6, "recall": 4 / 7, "f1": 8 / 13}
    assert (shares["rows"], shares["compared"], shares["parse_rate"]) == (8, 5, 6 / 7)
    assert shares["perfect_rows"] == 2 / 5
    assert shares["failures"] == {"bad_reply": 1, "timeout": 1, "judge_timeout": 1}


def test_verdicts_against_labels():
    figures = VerdictFigures()
    for labelled, said in [(True, True)] * 3 + [(True, False)] + [(False, False)] * 2 + [(False, True)] * 2:
        figures.add([(labelled, said)])
    figures.fail("bad_reply")
    shares = figures.shares()
    assert (shares["rows"], shares["judged"], shares["agreement"]) == (9, 8, 5 / 8)
    assert (shares["false_yes"], shares["false_no"]) == (2 / 4, 1 / 4)
    figures.add([(True, True), (False, True)])  # a response's
    assert (figures.shares()["rows"], figures.shares()["judged"]) == (10, 10)


def test_shares_of_nothing_are_none_and_the_table_says_so():
    figures = StepFigures()
    figures.fail("timeout")
    assert figures.shares()["parse_rate"] is None and figures.shares()["steps"]["f1"] is None
    shown = table({"decompositions": {"all": figures.shares()}, "verdicts": {}})
    assert "parse rate" in shown and "1 timeout" in shown and "agreement" not in shown
    assert shown.splitlines()[1].split()[:4] == ["all", "1", "-", "-"]

"""Errors on their way from one rank to the others (training/exchange.py)."""

import pickle

import pytest

from rlkd_nemo import errors


@pytest.mark.parametrize(
    "error",
    [
        errors.ConfigError(["one key", "another"]),
        errors.PromptFileError(["p.jsonl:1: no answer", "p.jsonl:7: no JSON"]),
        errors.InputError("nothing can be written"),
        errors.BackendUnavailable("down", retry_after_s=2.0),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_says_the_same_on_another_rank(error):
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error) and str(copy) == str(error) and vars(copy) == vars(error)

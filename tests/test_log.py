import logging
import re

import pytest

from rlkd_nemo import log


@pytest.fixture(autouse=True)
def restore_logging():
    root, own = logging.getLogger(), logging.getLogger("rlkd_nemo")
    before = list(root.handlers), root.level, own.level
    yield
    root.handlers[:], root.level, own.level = list(before[0]), before[1], before[2]
    log._prefix = None


def test_lines_carry_role_rank_and_the_current_step(capsys):
    log.configure("train", 0)
    logging.getLogger("rlkd_nemo.x").info("first")
    log.set_step(12)
    logging.getLogger("rlkd_nemo.x").info("second %d", 7)
    first, second = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"\d\d:\d\d:\d\d train 0 step 0 INFO rlkd_nemo\.x: first", first)
    assert second.endswith("train 0 step 12 INFO rlkd_nemo.x: second 7")


def test_a_second_call_replaces_the_first(capsys):
    log.configure("train", 0)
    log.configure("sft", 0)
    logging.getLogger("rlkd_nemo.x").info("once")
    assert capsys.readouterr().err.count("once") == 1


def test_other_ranks_speak_from_warning_up_and_at_debug_say_everything(capsys):
    log.configure("train", 1)
    logging.getLogger("rlkd_nemo.x").info("repeats rank 0")
    logging.getLogger("rlkd_nemo.x").warning("mine")
    log.configure("train", 1, "debug")
    logging.getLogger("rlkd_nemo.x").debug("detail")
    err = capsys.readouterr().err
    assert "repeats" not in err and "train 1 step 0 WARNING" in err and "detail" in err


def test_other_libraries_are_heard_from_warning_up(capsys):
    log.configure("train", 0)
    logging.getLogger("some.library").info("chatter")
    logging.getLogger("some.library").warning("trouble")
    err = capsys.readouterr().err
    assert "chatter" not in err and "trouble" in err


def test_lines_follow_a_replaced_stderr(monkeypatch):
    # A live progress bar swaps sys.stderr after `configure`; a handler bound to the old one would tear the bar.
    import io
    import sys

    log.configure("train", 0)
    swapped = io.StringIO()
    monkeypatch.setattr(sys, "stderr", swapped)
    logging.getLogger("rlkd_nemo.x").info("there")
    assert "there" in swapped.getvalue()


def test_an_unknown_level_names_the_choices():
    with pytest.raises(ValueError, match="'LOUD' is unknown; wanted one of DEBUG, INFO"):
        log.configure("train", 0, "LOUD")


def test_set_step_before_configure_does_nothing():
    log.set_step(3)

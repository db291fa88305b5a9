import logging

import pytest

from rlkd_nemo.report.progress import Progress, duration


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_plain_lines_hold_step_numbers_and_time_left(caplog, clock):
    caplog.set_level(logging.INFO)
    with Progress(10, "rlkd", live=False, clock=clock) as progress:
        clock.now = 30.0
        progress.update(2, reward=8.5, **{"tokens/s": 1234.5})
    # 15 s a step, 8 steps to go.
    assert caplog.messages == ["rlkd 2/10  reward 8.5  tokens/s 1,234  left 2m00s"]


def test_steps_before_a_resume_do_not_count_in_the_pace(caplog, clock):
    caplog.set_level(logging.INFO)
    progress = Progress(10, "rlkd", start=6, live=False, clock=clock)
    clock.now = 5.0
    progress.update(7)
    clock.now = 20.0
    progress.update(10)
    assert [message.split()[-2:] for message in caplog.messages] == [["left", "15s"], ["took", "20s"]]


def test_fast_steps_give_few_lines_but_the_last_always(caplog, clock):
    caplog.set_level(logging.INFO)
    progress = Progress(100, "sft", live=False, clock=clock)
    for step in range(1, 101):
        clock.now = step * 0.1
        progress.update(step, loss=1.0)
    # 10 s of steps: the first (0.1 s), one 5 s later (5.1 s), the last.
    assert [message.split()[1] for message in caplog.messages] == ["1/100", "51/100", "100/100"]


def test_a_terminal_gets_one_live_line(capsys, caplog):
    caplog.set_level(logging.INFO)
    with Progress(4, "student [supervised]", live=True) as progress:
        progress.update(1, loss=2.0)
        progress.update(4, loss=0.125)
    err = capsys.readouterr().err
    assert "student [supervised]" in err and "4/4" in err and "loss 0.125" in err
    assert caplog.messages == []


def test_live_is_chosen_by_the_terminal(monkeypatch):
    import sys

    assert Progress(1, "x")._bar is None
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Progress(1, "x") as progress:
        assert progress._bar is not None
    progress.close()


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0s"), (59.6, "1m00s"), (185, "3m05s"), (7800, "2h10m")])
def test_duration(seconds, text):
    assert duration(seconds) == text

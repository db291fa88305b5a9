"""The end of a job's time, with Slurm's variables and without."""

import time

import pytest

from rlkd_nemo.config.duration import seconds
from rlkd_nemo.errors import ConfigError
from rlkd_nemo.lifecycle.wall_clock import WallClock


def clock(limit=None, margin_s=None, **environment):
    return WallClock(limit, margin_s, environment={name: str(int(value)) for name, value in environment.items()})


def test_durations_are_days_hours_minutes_seconds():
    assert seconds("01:02:03:04") == 86400 + 2 * 3600 + 3 * 60 + 4


@pytest.mark.parametrize("text", ["02:03:04", "00:00:60:00", "00:24:00:00", "00:00:00:00", "4h", ""])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(ValueError, match="wanted"):
        seconds(text)


def test_without_a_limit_there_is_no_end():
    assert clock().end is None
    assert not clock().due()


def test_slurms_end_counts_by_itself_and_the_earlier_of_two_wins():
    now = time.time()
    assert clock(SLURM_JOB_END_TIME=now + 500).end == int(now + 500)
    both = {"SLURM_JOB_START_TIME": now - 100, "SLURM_JOB_END_TIME": now + 500}
    assert clock("00:00:05:00", **both).end == int(now - 100) + 300  # counted from the allocation, not from here
    assert clock("00:01:00:00", **both).end == int(now + 500)


def test_without_slurm_the_process_start_counts():
    end = clock("00:00:01:00").end
    assert end < time.time() + 60
    assert end > time.time() - 3600  # a process that is younger than an hour


def test_a_fixed_margin():
    end = time.time() + 100
    assert not clock(None, 50.0, SLURM_JOB_END_TIME=end).due()
    assert clock(None, 150.0, SLURM_JOB_END_TIME=end).due()


def test_a_margin_before_no_end_is_refused_with_both_keys():
    with pytest.raises(ConfigError, match=r"exp_manager.stop_margin_s=50.0 .*wanted exp_manager.max_time_per_run"):
        clock(None, 50.0)


def test_the_margin_covers_the_longest_step_and_save(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("rlkd_nemo.lifecycle.wall_clock.time.monotonic", lambda: now[0])
    made = clock(SLURM_JOB_END_TIME=time.time() + 1000)
    now[0] = 900.0  # building the model is no step
    made.start()
    for spent in (10.0, 40.0, 20.0):
        now[0] += spent
        made.step_done()
    assert made.margin_s == 1.5 * 40 + 2 * 40  # no save was seen: as long as a step
    made.saved(7.0)
    made.saved(5.0)
    assert made.margin_s == 1.5 * 40 + 2 * 7
    assert not made.due()
    now[0] += 700.0
    made.step_done()
    assert made.due()

"""The stop flag."""

import os
import signal

import pytest

from rlkd_nemo.lifecycle import signals


@pytest.fixture
def installed():
    previous = {number: signal.getsignal(number) for number in signals.STOPPING}
    signals.clear()
    signals.install()
    yield
    signals.clear()
    for number, handler in previous.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", signals.STOPPING)
def test_a_signal_sets_the_flag_and_nothing_else(installed, number):
    assert not signals.stop_requested()
    os.kill(os.getpid(), number)
    assert signals.stop_requested()
    signals.clear()
    assert not signals.stop_requested()


def test_a_second_interrupt_does_not_wait(installed):
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGTERM)  # Slurm repeats itself; still patient
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)

"""The circuit breaker, on a clock of its own."""

from rlkd_nemo.gsrm.service.breaker import Breaker


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_states():
    clock = Clock()
    breaker = Breaker(failures=2, cool_s=10, clock=clock)
    first = breaker.allow()
    assert first and not breaker.failure(first) and breaker.state == "closed"
    breaker.success()  # failures count in a row
    one, two, late = breaker.allow(), breaker.allow(), breaker.allow()
    assert not breaker.failure(one) and breaker.failure(two) and breaker.state == "open"
    clock.now = 4
    assert not breaker.allow() and breaker.retry_after_s == 6 and not breaker.failure(late)
    clock.now = 10
    assert breaker.state == "half_open"
    trial = breaker.allow()
    assert trial and not breaker.allow()  # one tries
    breaker.failure(trial)
    assert breaker.state == "open" and breaker.retry_after_s == 10
    clock.now = 20
    breaker.release(breaker.allow())  # cancelled: another may try
    trial = breaker.allow()
    assert trial
    breaker.success()
    assert breaker.state == "closed" and breaker.allow() and breaker.allow()


def test_a_trial_belongs_to_the_request_that_holds_it():
    clock = Clock()
    breaker = Breaker(failures=1, cool_s=10, clock=clock)
    cancelled, failing, opening = breaker.allow(), breaker.allow(), breaker.allow()
    assert breaker.failure(opening)
    clock.now = 10
    trial = breaker.allow()
    # Requests from before the pause end in the middle of the trial, and decide nothing about it.
    breaker.release(cancelled)
    assert not breaker.allow()
    assert not breaker.failure(failing) and breaker.state == "half_open" and not breaker.allow()
    breaker.failure(trial)
    assert breaker.state == "open" and breaker.retry_after_s == 10

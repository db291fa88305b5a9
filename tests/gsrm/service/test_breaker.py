"""The circuit breaker, on a clock of its own."""

from rlkd_nemo.gsrm.service.breaker import Breaker


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_states():
    clock = Clock()
    breaker = Breaker(failures=2, cool_s=10, clock=clock)
    assert breaker.allow() and not breaker.failure() and breaker.state == "closed"
    breaker.success()  # failures count in a row
    assert not breaker.failure() and breaker.failure() and breaker.state == "open"
    clock.now = 4
    assert not breaker.allow() and breaker.retry_after_s == 6 and not breaker.failure()
    clock.now = 10
    assert breaker.state == "half_open" and breaker.allow() and not breaker.allow()  # one tries
    breaker.failure()
    assert breaker.state == "open" and breaker.retry_after_s == 10
    clock.now = 20
    assert breaker.allow()
    breaker.release()  # cancelled: another may try
    assert breaker.allow()
    breaker.success()
    assert breaker.state == "closed" and breaker.allow() and breaker.allow()

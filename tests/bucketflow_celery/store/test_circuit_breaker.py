"""The circuit breaker of a store."""

from __future__ import annotations

from bucketflow_celery.store.circuit_breaker import CircuitBreaker


def test_the_pauses_of_an_outage_double_up_to_ten_seconds():
    breaker, now, pauses = CircuitBreaker(), 100.0, []
    assert breaker.open_until == 0
    for number in range(7):
        assert breaker.record_failure(now) == (number == 0)
        pauses.append(breaker.open_until - now)
        now = breaker.open_until
    assert pauses == [0.5, 1, 2, 4, 8, 10, 10]
    assert breaker.record_success()
    assert (breaker.open_until, breaker.record_success()) == (0, False)
    assert breaker.record_failure(now)
    assert breaker.open_until == now + 0.5

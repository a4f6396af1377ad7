"""The log line that sums up refusals."""

from __future__ import annotations

import logging

from bucketflow_celery.worker.refusal_log import RefusalLog


def test_refusals_are_summed_up_in_one_line_every_ten_seconds(caplog):
    now = [100.0]
    summary = RefusalLog(lambda: now[0])
    with caplog.at_level(logging.INFO):
        summary.add("q:q", 1.0)
        for number in range(50):
            now[0] += 0.1
            summary.add(f"q:q/t:{number % 7}", number / 10)
        assert len(caplog.records) == 1
        now[0] += 10
        summary.add("q:q", 2.0)
    first, second = (record.getMessage() for record in caplog.records)
    assert first == "throttled 1 task(s): q:q 1 (longest wait 1.0 s)"
    assert second.startswith("throttled 51 task(s): q:q/t:0 8 (longest wait 4.9 s), ")
    assert second.count("longest wait") == 5

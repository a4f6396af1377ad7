"""Fixtures for real workers on real servers."""

from __future__ import annotations

import pytest
from fleet import Fleet


@pytest.fixture
def fleet(tmp_path, redis_server):
    """Yield a fleet without workers on the shared Redis, which is emptied first."""
    fleet = Fleet(tmp_path, redis_server)
    fleet.records.client.flushall()
    yield fleet
    fleet.close()

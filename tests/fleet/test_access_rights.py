"""Workers whose Redis user has only some rights."""

from __future__ import annotations

import pytest
from access import documented, limited_user

PATTERNS = "~{bucketflow}:*", "&{bucketflow}:calls"
RIGHTS = documented("guide.md", "- Connections:", "  - The buckets of")
MODES = "retry", "hold", "park"


def test_the_documented_rights_suffice_in_every_mode_and_a_withdrawn_right_is_named(fleet):
    fleet.module(
        "modes",
        """
        from workloads import app
        from bucketflow_celery import throttled_task

        for mode in ("retry", "hold", "park"):
            @throttled_task(app=app, name=f"workloads.{mode}", on_limit=mode, tenant="tenant")
            def work(tenant): ...
        """,
    )
    with limited_user(fleet.server, RIGHTS, *PATTERNS) as url:
        fleet.configure(limits={"tenants": {"*": {"rate": "10/s", "capacity": 2}}}, bucketflow_url=f"{url}/1")
        worker = fleet.worker(app="modes")
        for mode in MODES:
            fleet.send(mode, mode, times=5)
        fleet.records.wait("starts", 15)
        assert fleet.records.count("refusals") >= len(MODES)
        assert "denies" not in worker.log

        with fleet.server.client() as admin:
            admin.execute_command("ACL", "SETUSER", "limited", "-mget")
            fleet.send("retry", "late")
            worker.wait_log("store unavailable, on_store_error='hold' until it answers")
            assert "denies this user MGET: " in worker.log
            admin.execute_command("ACL", "SETUSER", "limited", "+mget")
        fleet.records.wait("starts", 16)


@pytest.mark.parametrize(("missing", "config"), [("SELECT", {}), ("LPOP", {"bucketflow_on_limit": "park"})])
def test_a_worker_without_a_right_exits_and_names_the_command(fleet, missing, config):
    with limited_user(fleet.server, RIGHTS - {missing}, *PATTERNS) as url:
        fleet.configure(limits={"all": "10/s"}, bucketflow_url=f"{url}/1", **config)
        worker = fleet.worker(wait=False)

        assert worker.wait_end() != 0

    assert "bucketflow cannot start:\n" in worker.log
    assert f"denies this user {missing}: " in worker.log
    assert "Traceback" not in worker.log
    assert "secret" not in worker.log

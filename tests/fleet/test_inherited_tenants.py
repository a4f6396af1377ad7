"""Tenants of tasks that tasks publish: their own, or inherited where the option says so."""

from __future__ import annotations

import pytest

SOURCE = """
    from celery import chain, chord, group
    from workloads import add, app, record, throttled_task

    @throttled_task(app=app, name="own", tenant="account")
    def own(account):
        return account

    @throttled_task(app=app, name="never", tenant_inherits=False)
    def never():
        return 1

    @app.task(name="child")
    def child(*_):
        return 1

    @app.task(name="child_of_child")
    def child_of_child(*_):
        child.si().set(task_id="of a chain's child").apply_async()

    @app.task(name="report")
    def report(failed):
        return failed

    @app.task(name="failing")
    def failing():
        raise ValueError

    def named(task, name, *args):
        return task.si(*args).set(task_id=name)

    @throttled_task(app=app, name="parent", bind=True, tenant="account")
    def parent(self, account, way):
        if way == "children":
            named(child, "delay").apply_async()
            named(never, "never").apply_async()
            named(own, "own", "umbrella").apply_async()
            named(child, "header").apply_async(headers={"tenant": "globex"})
            named(child, "none").apply_async(headers={"tenant": ""})
            group(named(child, "group")).apply_async()
            chain(named(child, "chain 1"), named(child_of_child, "chain 2")).apply_async()
            chord([named(child, "chord header")])(named(child, "chord body"))
            named(child, "linking").apply_async(link=named(child, "link"))
            named(failing, "failing").apply_async(link_error=report.s().set(task_id="link_error"))
            app.send_task("celery.starmap", kwargs={"task": child.s(), "it": [[1]]}, task_id="starmap")
        elif way == "replace by its own":
            raise self.replace(own.s("umbrella"))
        elif way == "replace":
            raise self.replace(child.s())
        elif way == "replace by a chain":
            raise self.replace(chain(named(child, "first"), own.s("umbrella").set(immutable=True)))
        elif way == "retry" and not self.request.retries:
            raise self.retry(countdown=0, headers={})
"""
#: The tenant that each child has without and with inheritance, by task id.
CHILDREN = {
    "delay": (None, "acme"),
    "never": (None, None),
    "own": ("umbrella", "umbrella"),
    "header": ("globex", "globex"),
    "none": ("", ""),
    "group": (None, "acme"),
    "chain 1": (None, "acme"),
    "chain 2": (None, "acme"),
    "of a chain's child": (None, "acme"),
    "chord header": (None, "acme"),
    "chord body": (None, "acme"),
    "link": (None, "acme"),
    "link_error": (None, "acme"),
    "starmap": (None, "acme"),
}
#: Likewise the tenants of all starts with the id of the parent, but the first.
REPLACEMENTS = {
    "replace by its own": (["umbrella"], ["umbrella"]),
    "replace": ([None], ["acme"]),
    "replace by a chain": (["umbrella"], ["umbrella"]),
    "retry": (["acme"], ["acme"]),
}


@pytest.mark.parametrize("inherits", [False, True])
def test_the_tenants_of_published_tasks(fleet, inherits):
    fleet.configure(limits={"tenants": {"*": "100/s"}}, bucketflow_tenant_inherits=inherits)
    fleet.worker(app=fleet.module("children", SOURCE))

    # Published without a throttle: the worker has to work out the parent's tenant itself.
    for way in ["children", *REPLACEMENTS]:
        fleet.app.send_task("parent", ("acme", way), task_id=way)

    for name, tenants in CHILDREN.items():
        [start] = fleet.records.starts(1, id=name)
        assert (name, start["tenant"]) == (name, tenants[inherits])
    for name, tenants in REPLACEMENTS.items():
        starts = fleet.records.starts(2, id=name)[1:]
        assert (name, [start["tenant"] for start in starts]) == (name, tenants[inherits])

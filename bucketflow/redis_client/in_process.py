"""Runners for an object that evaluates scripts itself: the counterparts of those in ``runner.py``, without a server."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

from bucketflow.fork import reset_after_fork
from bucketflow.redis_client.batching import AsyncBatcher, ThreadBatcher
from bucketflow.redis_client.private_clients import AsyncClient, Client
from bucketflow.redis_client.runner import AsyncScriptRunner, ScriptRunner
from bucketflow.redis_client.topology import ScriptCall
from bucketflow.script_host import ScriptHost
from bucketflow.validation import check_number

__all__ = ["AsyncRunner", "Runner", "async_runner_of", "runner_of"]

#: Seconds after which a batch's leader counts as lost. A call takes microseconds.
_LEADER_TIMEOUT = 10.0


class InProcessRunner:
    """
    Runs scripts on *host*, in the calling thread.

    Args:
        host: Evaluates the scripts.
        timeout: Checked, and not needed: no call waits for a reply.
    """

    def __init__(self, host: ScriptHost, timeout: float) -> None:
        check_number("timeout", timeout, "seconds above 0", above=True)
        self._host = host
        self._batcher = ThreadBatcher(self.run_call, self.run_all, _LEADER_TIMEOUT)
        reset_after_fork(self)

    def after_fork(self) -> None:
        """Drop pending calls: in a forked child their threads do not exist."""
        self._batcher.reset()

    def run_call(self, call: ScriptCall) -> Any:  # noqa: ANN401 - depends on the script
        """See :meth:`bucketflow.redis_client.runner.ScriptRunner.run_call`."""
        return self._host.run_script(call.script.name, call.keys, call.args)

    def run_all(self, calls: Sequence[ScriptCall]) -> list[Any]:
        """See :meth:`bucketflow.redis_client.runner.ScriptRunner.run_all`."""
        return [self.run_call(call) for call in calls]

    def batcher(self, _slot: int) -> ThreadBatcher:
        """See :meth:`bucketflow.redis_client.runner.ScriptRunner.batcher`."""
        return self._batcher

    def close(self) -> None:
        """Do nothing: there is no connection."""


class AsyncInProcessRunner:
    """:class:`InProcessRunner` for coroutines, in any number of event loops."""

    def __init__(self, host: ScriptHost, timeout: float) -> None:
        check_number("timeout", timeout, "seconds above 0", above=True)
        self._host = host
        self._batchers: WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncBatcher] = WeakKeyDictionary()

    async def run_call(self, call: ScriptCall) -> Any:  # noqa: ANN401 - depends on the script
        """See :meth:`InProcessRunner.run_call`."""
        return self._host.run_script(call.script.name, call.keys, call.args)

    async def run_all(self, calls: Sequence[ScriptCall]) -> list[Any]:
        """See :meth:`InProcessRunner.run_all`."""
        return [await self.run_call(call) for call in calls]

    def batcher(self, _slot: int) -> AsyncBatcher:
        """See :meth:`InProcessRunner.batcher`; each event loop has its own."""
        loop = asyncio.get_running_loop()
        batcher = self._batchers.get(loop)
        if batcher is None:
            for closed in [known for known in self._batchers if known.is_closed()]:
                self._batchers.pop(closed, None)  # its batcher refers to it, so the weak key is never collected
            batcher = self._batchers[loop] = AsyncBatcher(self.run_call, self.run_all)
        return batcher

    async def close(self) -> None:
        """Do nothing: there is no connection."""


#: What runs the scripts of threads, and of coroutines.
Runner: TypeAlias = ScriptRunner | InProcessRunner
AsyncRunner: TypeAlias = AsyncScriptRunner | AsyncInProcessRunner


def runner_of(client: Client | ScriptHost, timeout: float) -> Runner:
    """Return a runner for threads on *client*. Raises as :class:`bucketflow.redis_client.runner.ScriptRunner` does."""
    return InProcessRunner(client, timeout) if isinstance(client, ScriptHost) else ScriptRunner(client, timeout)


def async_runner_of(client: AsyncClient | ScriptHost, timeout: float) -> AsyncRunner:
    """Return a runner for coroutines on *client*. Raises as :func:`runner_of` does."""
    if isinstance(client, ScriptHost):
        return AsyncInProcessRunner(client, timeout)
    return AsyncScriptRunner(client, timeout)

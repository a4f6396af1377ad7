"""The Lua of the backlog equals backlog.py, dispatch.py and leases.py bit for bit, and both keep their promises."""

from __future__ import annotations

import random
from collections import Counter
from typing import ClassVar

import pytest
from backlog_twins import LEASE, SECOND, Lane, Twins, parcel
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from bucketflow_celery.store.interfaces import LeaseLost

QUEUES = ("q", "other queue")
TENANTS = ("", "a", "b", "ü/c:{d}")
TASKS = ("mail", "report", "odd")
WORKERS = ("w1", "w2", "w3")
MOVES = (0, 1, 499, 5_000, 10_001, 20_000, 50_001, 100_000, 1_000_000, 7_500_000)


def table(chance):
    """Return a random table of limits, in the form of the configuration."""
    limit = lambda: {"capacity": chance.choice([1, 2, 4, 9]), "fill_rate": chance.choice([0.5, 7.25, 20, 300])}  # noqa: E731
    maybe = lambda share: limit() if chance.random() < share else None  # noqa: E731
    return {
        "all": maybe(0.3),
        "queues": {"*": maybe(0.8)},
        "tenants": {"*": maybe(0.4), "b": {**limit(), "shared": True}},
        "tasks": {"*": maybe(0.2), "report": maybe(0.4)},
        "weights": {name: chance.choice([0.5, 1 / 3, 1, 3, 5]) for name in TENANTS if name},
    }


#: The events that the twins count. A story without one of them does not test it.
EVERYTHING = {
    "admitted", "another version", "blocked", "calls", "ended", "fresh", "full", "parked already", "limits", "no lease",
    "not admitted", "parked", "purged", "reclaimed", "refused", "returned", "share", "stranded", "waits", "moved",
}  # fmt: skip


class Player:
    """Applies random steps to the twins, drawn from *chance*: a ``random.Random``, or that of hypothesis."""

    def __init__(self, twins, chance):
        self.twins, self.chance, self.numbers, self.generation, self.living = twins, chance, Counter(), 0, {}
        self.poll_at = {}
        for name in WORKERS:
            self.join(name)

    def join(self, name):
        self.generation += 1
        knows = TASKS if name != "w3" else TASKS[:2]
        self.living[name] = self.twins.join(f"{name}/{self.generation}", knows)

    def worker(self):
        if self.chance.random() < 0.05:
            return self.twins.workers[self.chance.choice(sorted(self.twins.workers))]  # its lease may have expired
        return self.living[self.chance.choice(WORKERS)]

    def queue(self):
        return self.chance.choice((*QUEUES, QUEUES[0], QUEUES[0]))

    def lane(self):
        chance = self.chance
        return Lane(chance.choice(TENANTS), chance.choice((*TASKS, TASKS[0])), chance.choice([0, 0, 0, 5, 1, 2]))

    def move(self):
        by = self.chance.choice(MOVES)
        self.twins.move(by)

    def set_back(self):
        self.twins.move(-self.chance.choice(MOVES))

    def park(self):
        chance, messages, queue = self.chance, [], self.queue()
        for _ in range(chance.randint(1, 6)):
            self.numbers[queue] += 1
            number = self.numbers[queue] if chance.random() < 0.9 else chance.randint(1, self.numbers[queue])
            cost = chance.choice([1.0, 1.0, 1.0, 1.0, 1.0, 0.25, 0.5, 0.9, 2.0, 3.5])
            max_wait_us = chance.choice([0, 0, 0, 0, 30_000, 3_000_000])
            messages.append(parcel((queue, number), self.lane(), cost, max_wait_us, redelivered=chance.random() < 0.1))
        limit = chance.choice([1000, 1000, 1000, 10])
        messages = [one for one in messages if one.uid not in self.twins.moved]  # their queue knows them no more
        self.twins.park(queue, messages, limit, busy=chance.random() < 0.5)

    def dispatch(self):
        self._dispatch(self.worker(), self.queue(), self.chance.choice([0, 1, 1, 2, 4, 4, 8]))

    def _dispatch(self, worker, queue, free):
        for _ in range(4):
            reply = self.twins.dispatch(worker, queue, free)
            if isinstance(reply, LeaseLost):
                return
            if reply is not None:
                self.poll_at[worker.name, queue] = self.twins.now + reply.wait if reply.wait else None
                free -= sum(dispatched.admitted for dispatched in reply.dispatched)
                if reply.wait != 0 or free == 0:
                    return

    def come(self):
        """Poll with the worker whose next poll is the earliest."""
        expected = [(at, *who) for who, at in self.poll_at.items() if at is not None and who[0] in self.twins.workers]
        if expected:
            at, name, queue = min(expected)
            self.poll_at[name, queue] = None
            self.twins.move(min(max(0, at - self.twins.now), 10 * SECOND))
            self._dispatch(self.twins.workers[name], queue, self.chance.randint(1, 8))

    def settle(self):
        worker, queue, ended, returned = self.worker(), self.queue(), [], []
        for uid in list(worker.has):
            at = self.chance.random()
            if at < 0.5:
                ended.append(uid)
            elif at < 0.7:
                returned.append((uid, at < 0.6))
        self.twins.settle(worker, queue, ended=ended, returned=returned, confirm=self.chance.choice([0, 0, 5]))

    def renew(self):
        name = self.chance.choice(WORKERS)
        if not self.twins.renew(self.living[name]):
            self.join(name)

    def renew_all(self):
        for name in WORKERS:
            if not self.twins.renew(self.living[name]):
                self.join(name)

    def outlive(self):
        """Let all leases expire but one."""
        self.twins.move(round(LEASE * SECOND) + 1)
        self.renew()

    def leave(self):
        name = self.chance.choice(WORKERS)
        self.twins.leave(self.living[name])
        self.join(name)

    def limits(self):
        self.twins.set_limits(table(self.chance) if self.chance.random() < 0.9 else None)

    def pause(self):
        name = self.chance.choice(["all:", "queue:q", "tenant:a", "tenant:ü/c:{d}", "task:mail"])
        self.twins.pause(name, paused=name not in self.twins.paused and self.chance.random() < 0.6)

    def purge(self):
        lanes = sorted({lane for (_, lane), line in self.twins.lanes.items() if line})
        self.twins.purge(self.queue(), self.chance.choice(lanes) if lanes else self.lane())

    def transfer(self):
        queue = self.queue()
        lanes = sorted({lane for (of, lane), line in self.twins.lanes.items() if line and of == queue})
        to = self.chance.choice([name for name in QUEUES if name != queue])
        self.twins.transfer(queue, to, self.chance.choice(lanes) if lanes else self.lane())

    def announce(self):
        self.twins.announce(self.worker(), [name for name in QUEUES if self.chance.random() < 0.2])

    def admit(self):
        requests = [
            (lane.tenant, lane.task, self.chance.choice([1.0, 0.5]), self.chance.random() < 0.8)
            for lane in (self.lane() for _ in range(self.chance.randint(1, 4)))
        ]
        self.twins.admit(self.worker(), self.queue(), requests)

    STEPS: ClassVar = {
        "move": 4, "set_back": 0.1, "park": 5, "dispatch": 8, "come": 12, "settle": 5, "renew": 1, "renew_all": 3,
        "outlive": 0.1, "leave": 0.1, "limits": 0.2, "pause": 0.2, "purge": 0.3, "admit": 2,
        "transfer": 0.3, "announce": 2,
    }  # fmt: skip


class Story(RuleBasedStateMachine):
    """Any steps in any order."""

    client = None

    @initialize(chance=st.randoms(use_true_random=False))
    def begin(self, chance):
        self.twins = Twins(self.client)
        self.player = Player(self.twins, chance)

    @rule(step=st.sampled_from([name for name, share in Player.STEPS.items() for _ in range(max(1, round(share)))]))
    def act(self, step):
        getattr(self.player, step)()

    def teardown(self):
        if hasattr(self, "player"):
            self.twins.check()
            self.twins.close()


def test_any_story_gives_the_same_replies_and_leaves_the_same_bits(redis_client):
    Story.client = redis_client
    phases = [phase for phase in Phase if phase is not Phase.shrink]  # a shrunk story explains no more
    run_state_machine_as_test(
        Story,
        settings=settings(
            max_examples=25, stateful_step_count=80, deadline=None, phases=phases, suppress_health_check=[*HealthCheck]
        ),
    )


@pytest.mark.parametrize("seed", range(2))
def test_thousands_of_steps_give_the_same_replies_and_leave_the_same_bits(redis_client, seed):
    counted, names, shares = Counter(), list(Player.STEPS), list(Player.STEPS.values())
    for story in range(3):
        chance = random.Random(100 * seed + story)
        twins = Twins(redis_client)
        player = Player(twins, chance)
        twins.set_limits(table(chance))
        for number, step in enumerate(chance.choices(names, shares, k=1000)):
            getattr(player, step)()
            if number % 100 == 0:
                twins.check()
        twins.check()
        twins.close()
        counted += twins.counted
    assert min(counted.values()) >= 5, counted
    assert set(counted) == EVERYTHING
    assert min(counted[name] for name in ("parked", "admitted", "waits", "ended")) >= 250, counted

"""The Lua of the backlog is backlog.py and backlogs.py, bit for bit; and both keep what they promise."""

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
    """Return a table of limits as a user writes one."""
    limit = lambda: {"capacity": chance.choice([1, 2, 4, 9]), "fill_rate": chance.choice([0.5, 7.25, 20, 300])}  # noqa: E731
    maybe = lambda share: limit() if chance.random() < share else None  # noqa: E731
    return {
        "all": maybe(0.3),
        "queues": {"*": maybe(0.8)},
        "tenants": {"*": maybe(0.4), "b": {**limit(), "shared": True}},
        "tasks": {"*": maybe(0.2), "report": maybe(0.4)},
        "weights": {name: chance.choice([0.5, 1 / 3, 1, 3, 5]) for name in TENANTS if name},
    }


#: What the twins count: a story in which one of these never happens says nothing about it.
EVERYTHING = {
    "admitted", "another version", "blocked", "calls", "ended", "fresh", "full", "known", "limits", "no lease",
    "not admitted", "parked", "purged", "reclaimed", "refused", "returned", "share", "told to wait",
}  # fmt: skip


class Player:
    """Does one thing after the other to the twins, whatever *chance* says: a ``random.Random``, or hypothesis'."""

    def __init__(self, twins, chance):
        self.twins, self.chance, self.numbers, self.generation, self.living = twins, chance, Counter(), 0, {}
        self.told = {}
        for name in WORKERS:
            self.join(name)

    def join(self, name):
        self.generation += 1
        knows = TASKS if name != "w3" else TASKS[:2]
        self.living[name] = self.twins.join(f"{name}/{self.generation}", knows)

    def worker(self):
        if self.chance.random() < 0.05:
            return self.twins.workers[self.chance.choice(sorted(self.twins.workers))]  # it may be dead
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
        chance, parcels, queue = self.chance, [], self.queue()
        for _ in range(chance.randint(1, 6)):
            self.numbers[queue] += 1
            number = self.numbers[queue] if chance.random() < 0.9 else chance.randint(1, self.numbers[queue])
            cost = chance.choice([1.0, 1.0, 1.0, 1.0, 1.0, 0.25, 0.5, 0.9, 2.0, 3.5])
            patience = chance.choice([0, 0, 0, 0, 30_000, 3_000_000])
            parcels.append(parcel((queue, number), self.lane(), cost, patience, redelivered=chance.random() < 0.1))
        limit = chance.choice([1000, 1000, 1000, 10])
        self.twins.park(queue, parcels, limit, busy=chance.random() < 0.5)

    def dispatch(self):
        self._dispatch(self.worker(), self.queue(), self.chance.choice([0, 1, 1, 2, 4, 4, 8]))

    def _dispatch(self, worker, queue, free):
        for _ in range(4):
            answer = self.twins.dispatch(worker, queue, free)
            if isinstance(answer, LeaseLost):
                return
            if answer is not None:
                self.told[worker.name, queue] = self.twins.now + answer.wait if answer.wait else None
                free -= sum(dispatched.admitted for dispatched in answer.dispatched)
                if answer.wait != 0 or free == 0:
                    return

    def come(self):
        """Let the worker come that was told the earliest time."""
        told = [(at, *who) for who, at in self.told.items() if at is not None and who[0] in self.twins.workers]
        if told:
            at, name, queue = min(told)
            self.told[name, queue] = None
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
        """Let all leases end but one."""
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
        lanes = sorted({lane for (_, lane), line in self.twins.lines.items() if line})
        self.twins.purge(self.queue(), self.chance.choice(lanes) if lanes else self.lane())

    def admit(self):
        asks = [
            (lane.tenant, lane.task, self.chance.choice([1.0, 0.5]), self.chance.random() < 0.8)
            for lane in (self.lane() for _ in range(self.chance.randint(1, 4)))
        ]
        self.twins.admit(self.worker(), self.queue(), asks)

    STEPS: ClassVar = {
        "move": 4, "set_back": 0.1, "park": 5, "dispatch": 8, "come": 12, "settle": 5, "renew": 1, "renew_all": 3,
        "outlive": 0.1, "leave": 0.1, "limits": 0.2, "pause": 0.2, "purge": 0.3, "admit": 2,
    }  # fmt: skip


class Story(RuleBasedStateMachine):
    """Any steps, in any order."""

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


def test_any_story_gives_the_same_answers_and_leaves_the_same_bits(redis_client):
    Story.client = redis_client
    phases = [phase for phase in Phase if phase is not Phase.shrink]  # a story of half its length says no more
    run_state_machine_as_test(
        Story,
        settings=settings(
            max_examples=25, stateful_step_count=80, deadline=None, phases=phases, suppress_health_check=[*HealthCheck]
        ),
    )


@pytest.mark.parametrize("seed", range(2))
def test_thousands_of_steps_give_the_same_answers_and_leave_the_same_bits(redis_client, seed):
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
    assert min(counted[name] for name in ("parked", "admitted", "told to wait", "ended")) >= 250, counted

"""Hypothesis strategies for the simulated fleets: workloads, limits, outages and restarts."""

from __future__ import annotations

from hypothesis import strategies as st
from simulation import Job

from bucketflow_celery import Limit

limits = st.builds(
    Limit,
    st.sampled_from([1, 1, 2, 5, 10]),
    st.sampled_from([0.5, 1, 2, 5, 20, 50]),
    st.sampled_from([False] * 4 + [True]),
)
tables = st.fixed_dictionaries(
    {},
    optional={
        "all": limits,
        "queues": st.dictionaries(st.sampled_from("qr"), limits),
        "tenants": st.dictionaries(st.sampled_from(["a", "b", "*"]), st.one_of(st.none(), limits, limits)),
        "tasks": st.dictionaries(st.sampled_from("fg"), limits),
    },
)
outages = st.lists(st.tuples(st.floats(0, 20), st.floats(0, 15)).map(lambda pair: (pair[0], sum(pair))), max_size=2)
restarts = st.lists(st.tuples(st.integers(0, 2), st.floats(0, 30)), max_size=2)


@st.composite
def workloads(draw, *modes):
    chance = draw(st.randoms(use_true_random=False))
    burst, longest = draw(st.booleans()), draw(st.sampled_from([0, 0.05, 2]))
    costs = draw(st.sampled_from([[1.0], [1.0, 1.0, 3.0, 0.5, 0.0, 100.0]]))
    waits = draw(st.sampled_from([[None], [None, 0.5, 5.0, 20.0]]))
    mode = draw(st.sampled_from(modes))
    revoking = draw(st.sampled_from([0, 0.3]))
    ranks = draw(st.sampled_from([[0], [0, 3, 9]]))
    return [
        Job(
            at=0.0 if burst else chance.uniform(0, 20),
            queue=chance.choice("qqrs"),
            tenant=chance.choice([None, "a", "a", "b", "c"]),
            name=chance.choice("fg"),
            cost=chance.choice(costs),
            duration=chance.uniform(0, longest),
            max_wait=chance.choice(waits),
            on_limit=chance.choice(mode),
            acks_late=chance.random() < 0.5,
            rank=chance.choice(ranks),
            revoked_at=chance.uniform(0, 30) if chance.random() < revoking else None,
        )
        for _ in range(draw(st.sampled_from([5, 20, 100, 150])))
    ]

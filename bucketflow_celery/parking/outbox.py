"""What a worker offers to the backlogs, until the store has it and the broker has forgotten it."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeAlias

from bucketflow_celery.admission.pending_task import Entry
from bucketflow_celery.parking.interfaces import Desk, RoomHost
from bucketflow_celery.parking.parked_tenants import Blocking
from bucketflow_celery.scheduling.model import FULL, KNOWN, Parcel
from bucketflow_celery.stats import Stats

__all__ = ["Confirming", "Offer", "Offering"]

#: Seconds after which the broker has surely heard that a message was acknowledged.
SURE = 5.0
#: Messages, and seconds, after which it is worth a call to say so.
MANY, LONG = 500, 10.0


class Confirming:
    """Messages that were acknowledged on one connection to the broker. A lost connection may take the last along."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[tuple[float, bytes]]] = {}

    def add(self, queue: str, uid: bytes, now: float) -> None:
        """Take note that the message *uid* of *queue* was acknowledged at *now*."""
        self._waiting.setdefault(queue, deque()).append((now, uid))

    def due(self, now: float) -> str | None:
        """Return a queue of which there is enough to tell."""
        for queue, waiting in self._waiting.items():
            if waiting and (now - waiting[0][0] > LONG or (len(waiting) > MANY and now - waiting[0][0] > SURE)):
                return queue
        return None

    def take(self, queue: str, now: float) -> tuple[bytes, ...]:
        """Return the messages of *queue* that the broker has forgotten, and forget them, too."""
        waiting, sure = self._waiting.get(queue, deque()), []
        while waiting and now - waiting[0][0] > SURE:
            sure.append(waiting.popleft()[1])
        return tuple(sure)


#: Messages offered in one call.
Offer: TypeAlias = "list[tuple[Entry, Parcel]]"

#: Seconds before a message is offered again to a backlog that was full.
FULL_PAUSE = 1.0


class Offering:
    """
    The messages that are to be parked, on one connection to the broker.

    Args:
        host: The worker.
        desk: The gate in front of its pool.
        blocking: Which tenants have tasks parked.
        confirming: Which messages were acknowledged.
        stats: Where to count.
    """

    def __init__(self, host: RoomHost, desk: Desk, blocking: Blocking, confirming: Confirming, stats: Stats) -> None:
        self._host = host
        self._desk = desk
        self._blocking = blocking
        self._confirming = confirming
        self._stats = stats
        self._parking: defaultdict[str, deque[Entry]] = defaultdict(deque)
        self._being_parked: list[Entry] = []
        self._offered: dict[Entry, Parcel] = {}  # if the store knows one of these, it is from here

    def add(self, entry: Entry) -> None:
        """Let *entry* be offered."""
        self._parking[entry.queue].append(entry)
        self._blocking.add(entry)

    def entries(self) -> list[Entry]:
        """Return the entries that are not known to be stored."""
        return [*self._being_parked, *(entry for parking in self._parking.values() for entry in parking)]

    def take(self, most: int, most_bytes: int) -> tuple[str, Offer] | None:
        """Return what to offer next, of one queue; then call :meth:`on_answer` or :meth:`on_silence`."""
        for queue, parking in self._parking.items():
            offer: Offer = []
            size = 0
            while parking and len(offer) < most and size < most_bytes:
                entry = parking.popleft()
                parcel = self._parcel(entry)
                if parcel is not None:
                    offer.append((entry, parcel))
                    size += len(parcel.message)
            if offer:
                self._being_parked = [entry for entry, _ in offer]
                return queue, offer
        return None

    def on_silence(self, queue: str, offer: Offer) -> None:
        """Make *offer* again: the store did not answer."""
        self._being_parked = []
        # They may be stored, and are the store's then: from here on nobody may start them, nor send them elsewhere.
        self._offered.update(offer)
        self._parking[queue].extendleft(entry for entry, _ in reversed(offer))

    def on_answer(self, queue: str, offer: Offer, positions: Sequence[int]) -> bool:
        """
        Act on the store's answer.

        Args:
            queue: The queue of all of them.
            offer: What was offered.
            positions: Of each, in its lane: 1 or more, ``FULL`` or ``KNOWN``; same length and order.

        Returns:
            Whether one of them is the first of its lane now, and so may be handed out at once.
        """
        self._being_parked = []
        for (entry, parcel), position in zip(offer, positions, strict=True):
            was_offered = self._offered.pop(entry, None) is not None
            if position == FULL:
                self._keep(entry)
            elif position == KNOWN and not was_offered and self._host.is_fresh(entry):
                self._offer_twin(queue, entry)
            else:
                self._on_stored(queue, entry, parcel, position)
        return 1 in positions

    def _parcel(self, entry: Entry) -> Parcel | None:
        if entry in self._offered:
            return self._offered[entry]
        if self._host.is_gone(entry):
            self._blocking.remove(entry)
            self._desk.leave(entry)
            return None
        parcel = self._host.parcel(entry, again=False)
        if parcel is None:
            self._blocking.remove(entry)
            entry.passage = replace(entry.passage, on_limit="hold")
            self._desk.keep(entry, 0.0)
        return parcel

    def _offer_twin(self, queue: str, entry: Entry) -> None:
        """Park a message that looks like one that is parked, and was not delivered twice but published twice."""
        parcel = self._host.parcel(entry, again=True)
        if parcel is not None:
            self._offered[entry] = parcel
        self._parking[queue].append(entry)

    def _keep(self, entry: Entry) -> None:
        self._blocking.remove(entry)
        self._desk.keep(entry, FULL_PAUSE)

    def _on_stored(self, queue: str, entry: Entry, parcel: Parcel, position: int) -> None:
        now = self._host.monotonic()
        if position != KNOWN:
            self._stats.parked += 1
            self._blocking.remember(queue, parcel.lane.tenant, now)
        self._blocking.remove(entry)
        self._desk.leave(entry)
        self._host.parked(entry, position)
        self._confirming.add(queue, parcel.uid, now)

"""What becomes of those that the store was asked for: they start, are parked, wait in a line here, or return."""

from __future__ import annotations

from collections import deque
from typing import TypeAlias

from bucketflow.limit import SECOND
from bucketflow_celery.admission.actions import Handling
from bucketflow_celery.admission.hold_queues import Line, Lines
from bucketflow_celery.admission.pending_task import Entry
from bucketflow_celery.admission.prechecks import Triage
from bucketflow_celery.admission.reservations import Places
from bucketflow_celery.scheduling.admit import Answer, Ask

__all__ = ["Unsettled", "Verdicts"]

#: Tasks, each with the line it stood in, the question and the answer.
Unsettled: TypeAlias = "deque[tuple[tuple[Entry, Line | None], Ask, Answer]]"


class Verdicts:
    """
    Acts on answers.

    Args:
        lines: Where those wait who stay in this worker.
        places: What the lines were promised.
        handling: Does to each of them what was decided.
        triage: Parks, and is told which levels are dry.
    """

    def __init__(self, lines: Lines, places: Places, handling: Handling, triage: Triage) -> None:
        self._lines = lines
        self._places = places
        self._handling = handling
        self._triage = triage

    def settle(self, unsettled: Unsettled) -> None:
        """Act on all of *unsettled*, in order; those that are still in it when this raises were not reached."""
        fronts: dict[Line, list[Entry]] = {}
        dry: dict[str, Line] = {}
        left: list[Ask] = []
        try:
            while unsettled:
                (entry, origin), ask, answer = unsettled.popleft()
                if answer.admitted:
                    self._handling.start(entry)
                    continue
                if entry.passage.parks:
                    self._refuse_and_park(entry, ask, answer, dry)
                    continue
                self._places.settle(entry, answer)
                line = self._line_for(entry, origin, ask, answer, dry)
                if line is None:
                    left.append(ask)
                elif line is origin:
                    fronts.setdefault(line, []).append(entry)
                else:
                    self._handling.join(entry, line)
        finally:  # whatever went wrong with one of them, the others are still here
            for line, entries in fronts.items():
                line.put_back(entries)
            for ask in left:
                self._lines.wake(ask)

    def _refuse_and_park(self, entry: Entry, ask: Ask, answer: Answer, dry: dict[str, Line]) -> None:
        if answer.binding is not None:
            level = ask.path[answer.binding]
            if not level.returns:
                dry[level.key] = self._lines.of(level.key, level)
            self._triage.note_dry(level, answer.wait / SECOND)
            if self._handling.is_refused(entry, level, answer.wait / SECOND):
                return
        self._triage.park(entry)

    def _line_for(
        self, entry: Entry, origin: Line | None, ask: Ask, answer: Answer, dry: dict[str, Line]
    ) -> Line | None:
        """Act on a refusal; return the line in which the task waits, ``None`` if it does not wait here."""
        if answer.binding is None:
            return next(dry[level.key] for level in ask.path if level.key in dry)
        level = ask.path[answer.binding]
        line = self._lines.of(level.key, level)
        if not level.returns:
            dry[level.key] = line
        wait, had_place = answer.wait / SECOND, ask.dues[answer.binding] > 0
        return line if self._handling.refuse(entry, origin, level, wait, had_place=had_place) else None

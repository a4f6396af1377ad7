"""Admission of received tasks in one worker: start, hold, defer, park or fail. Knows no Celery."""

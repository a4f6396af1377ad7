"""Parking in one worker: park, poll, dispatch, settle, renew the lease. Knows no Celery."""

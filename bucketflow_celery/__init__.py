"""Throttling for Celery: every task passes a shared hierarchy of Redis token buckets."""

"""Everything that touches Celery's worker."""

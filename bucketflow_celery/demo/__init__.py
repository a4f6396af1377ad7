"""``python -m bucketflow_celery.demo``: real Celery workers under a shared hierarchy of limits, on one screen."""

"""``python -m bucketflow_celery.demo``: real Celery workers obey a shared hierarchy of token buckets, on one screen."""

"""BucketFlow beside other limiters, measured in one run on one machine; ``compare.py`` starts it."""

"""Token buckets for Python: one process, asyncio, a hierarchy, and a fleet through Redis."""

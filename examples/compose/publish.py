"""The publisher of docker-compose.yml: sends more orders than may run at once, and waits for all of them."""

from __future__ import annotations

import time

from celery import group
from shop import sync_order

ACCOUNTS = ("acme", "umbrella", "initech")
ORDERS = 20

if __name__ == "__main__":
    began = time.monotonic()
    orders = group(sync_order.s(account, order) for order in range(ORDERS) for account in ACCOUNTS)
    results = orders.apply_async().get(timeout=60)
    print(f"{len(set(results))} orders in {time.monotonic() - began:.1f} s")

"""Kombu messages: encoding for the backlog, queue of origin, republication, tenant stamp."""

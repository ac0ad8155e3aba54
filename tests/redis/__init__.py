"""Comparisons with redis-server, redis-py and other clients of Redis."""

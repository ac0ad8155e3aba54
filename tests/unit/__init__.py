"""Tests of parts that need no server."""

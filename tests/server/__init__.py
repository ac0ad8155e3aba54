"""Tests of a running server, of client.py and of the command lines."""

"""Tests of the transports, of Windows, and of clients in other languages."""

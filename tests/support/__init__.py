"""Helpers of the tests.

Not exported here: ``wire`` (RESP as bytes), ``cases`` and ``internals`` (clients without a server),
``generator`` (random commands).
"""

from __future__ import annotations

from tests.support.basics import (
    DEADLINE,
    ROOT,
    WINDOWS,
    Background,
    Clock,
    free_port,
    running_under_wine,
    unique_name,
    wait_until,
)
from tests.support.connections import (
    Conversation,
    RawConnection,
    TCPConnection,
)
from tests.support.programs import (
    CLIENTS,
    required,
    run_javascript,
    run_program,
)
from tests.support.redis_server import (
    redis_address,
)
from tests.support.servers import (
    ConversationCase,
    ServerCase,
    ServerProcess,
    log_restored,
    new_client,
    options_of_server,
    start_server,
    usage_error,
)

__all__ = [
    "CLIENTS",
    "DEADLINE",
    "ROOT",
    "WINDOWS",
    "Background",
    "Clock",
    "Conversation",
    "ConversationCase",
    "RawConnection",
    "ServerCase",
    "ServerProcess",
    "TCPConnection",
    "free_port",
    "log_restored",
    "new_client",
    "options_of_server",
    "redis_address",
    "required",
    "run_javascript",
    "run_program",
    "running_under_wine",
    "start_server",
    "unique_name",
    "usage_error",
    "wait_until",
]

"""What the tests share. RESP as bytes is in ``wire``, random commands in ``generator``."""

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
from tests.support.contexts import (
    ContextCase,
    LiveCase,
    recount,
)
from tests.support.programs import (
    CLIENTS,
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
    new_client,
)

__all__ = [
    "CLIENTS",
    "DEADLINE",
    "ROOT",
    "WINDOWS",
    "Background",
    "Clock",
    "ContextCase",
    "Conversation",
    "ConversationCase",
    "LiveCase",
    "RawConnection",
    "ServerCase",
    "ServerProcess",
    "TCPConnection",
    "free_port",
    "new_client",
    "recount",
    "redis_address",
    "run_javascript",
    "run_program",
    "running_under_wine",
    "unique_name",
    "wait_until",
]

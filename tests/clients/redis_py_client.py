"""A program that uses unmodified redis-py: python redis_py_client.py ADDRESS [PASSWORD]

The address is a named pipe, the path of a socket, or a port number of this machine.
"""

from __future__ import annotations

import importlib
import sys
import threading
from typing import Any

import redis  # type: ignore[import-untyped]

address, password = [*sys.argv[1:], None][:2]
every_byte = bytes(range(256))
numbers = {f"number:{number}": str(number) for number in range(500)}


def connect(**options: Any) -> Any:
    options = {"password": password, **options}
    assert address
    if address.startswith("\\\\"):
        connection = importlib.import_module("redis_pipe").PipeConnection
        pool = redis.ConnectionPool(connection_class=connection, path=address, **options)
        return redis.Redis.from_pool(pool)
    if address.isdigit():
        return redis.Redis(host="127.0.0.1", port=int(address), **options)
    return redis.Redis(unix_socket_path=address, **options)


def error(function: Any, *args: Any) -> str:
    try:
        return f"no error, but {function(*args)!r}"
    except redis.RedisError as raised:
        return f"{type(raised).__name__}: {raised}"


def broken(r: Any) -> str:
    """Return the result of a transaction whose watched key another client sets."""
    with r.pipeline() as pipe:
        pipe.watch("city")
        r.set("city", "lima")
        pipe.multi()
        pipe.set("city", "rome")
        return error(pipe.execute)


def silence(r: Any) -> list[Any]:
    """Return the results of reads that time out."""
    connection = r.connection_pool.get_connection()
    found = [connection.can_read(0), connection.can_read(0.05), error(connection.read_response)]
    r.connection_pool.release(connection)
    return found


def closing(r: Any, killer: Any) -> list[Any]:
    """Return the results of a command on a closed connection, and of the next command."""
    identity = r.client_id()
    connection = r.connection_pool.get_connection()
    found = [killer.client_kill_filter(_id=identity), error(connection.can_read, 30)]
    r.connection_pool.release(connection)
    return [*found, r.get("city")]


def hears(r: Any) -> list[Any]:
    """Return the messages to a subscriber, and the replies to its subscriptions."""
    with r.pubsub() as pubsub:
        pubsub.subscribe("news")
        pubsub.psubscribe("n*")
        told = [pubsub.get_message(timeout=30) for _ in range(2)]
        received = r.publish("news", "hello")
        told += [pubsub.get_message(timeout=30) for _ in range(2)]
        pubsub.unsubscribe()
        pubsub.punsubscribe()
        told += [pubsub.get_message(timeout=30) for _ in range(2)]
        silent = pubsub.get_message(timeout=0.01)
    return [received, *([each["type"], each["channel"], each["data"]] for each in told), silent]


def waits(r: Any, other: Any) -> list[Any]:
    """Return the element that a blocked client receives from another client."""
    found = [r.blpop("queue", timeout=0.01)]
    waiting = threading.Thread(target=lambda: found.append(r.blpop(["none", "queue"], timeout=0)))
    waiting.start()
    while not any(client["cmd"] == "blpop" for client in other.client_list()):
        pass
    other.rpush("queue", "job")
    waiting.join(30)
    return [each and list(each) for each in found]


def watches(r: Any, other: Any) -> str:
    """Return the command that MONITOR shows."""
    with r.monitor() as monitor:
        other.get("watched")
        while True:
            told = monitor.next_command()
            if "watched" in str(told):
                return str(told["command"])


def check(**options: Any) -> None:
    """Yield results with the expected values. The calls run from top to bottom."""
    r = connect(decode_responses=True, client_name="me", **options)
    binary = connect(**options)
    hasty = connect(socket_timeout=0.1, **options)
    pipe = r.pipeline(transaction=False)
    wrong = "WRONGTYPE Operation against a key holding the wrong kind of value"
    for got, expected in (
        ([r.flushall(), r.ping(), r.dbsize()], [True, True, 0]),
        ([r.client_getname(), r.client_info()["name"]], ["me", "me"]),
        ("me" in [client["name"] for client in r.client_list()], True),
        (r.info()["redis_mode"], "standalone"),
        # Strings and expiry.
        ([r.set("city", "dubai", ex=60), r.set("city", "x", nx=True)], [True, None]),
        ([r.get("city"), r.get("no"), r.ttl("city"), r.ttl("no")], ["dubai", None, 60, -2]),
        ([r.persist("city"), r.ttl("city"), r.expire("no", 1)], [True, -1, False]),
        ([r.mset({"a": 1, "b": "ü"}), r.mget("a", "no", "b")], [True, ["1", None, "ü"]]),
        ([r.incr("n"), r.incrby("n", 9), r.decr("n"), r.incrbyfloat("f", 0.5)], [1, 10, 9, 0.5]),
        ([r.exists("a", "b", "no"), r.delete("a", "b", "no")], [2, 2]),
        ([binary.set(every_byte, every_byte), binary.get(every_byte)], [True, every_byte]),
        ([r.set("big", "x" * 1048576), len(r.get("big"))], [True, 1048576]),
        # Hashes, lists, sets, sorted sets.
        (r.hset("h", mapping={"a": 1, "b": "two"}), 2),
        ([r.hgetall("h"), r.hget("h", "no"), r.hdel("h", "a")], [{"a": "1", "b": "two"}, None, 1]),
        ([r.rpush("l", "a", "b", "c"), r.lpop("l"), r.lrange("l", 0, -1)], [3, "a", ["b", "c"]]),
        ([r.sadd("s", "a", "b", "a"), r.smembers("s"), r.scard("s")], [2, {"a", "b"}, 2]),
        ([bool(r.sismember("s", "a")), bool(r.sismember("s", "no"))], [True, False]),
        ([r.zadd("z", {"b": 2.5, "a": 1}), r.zrange("z", 0, -1)], [2, ["a", "b"]]),
        ([r.zscore("z", "b"), r.zscore("z", "no"), r.zincrby("z", 1, "a")], [2.5, None, 2.0]),
        (list(map(list, r.zrange("z", 0, -1, withscores=True))), [["a", 2.0], ["b", 2.5]]),
        ([r.type("z"), r.type("h"), r.type("no")], ["zset", "hash", "none"]),
        # Transactions, pipelines, scanning.
        (r.pipeline().incr("n").get("city").hgetall("h").execute(), [10, "dubai", {"b": "two"}]),
        ([broken(r), r.get("city")], ["WatchError: Watched variable changed.", "lima"]),
        (pipe.mset(numbers).mget(numbers).execute(), [True, [*numbers.values()]]),
        (sorted(r.scan_iter("number:*", count=50)), sorted(numbers)),
        # Channels, waiting, MONITOR.
        (
            hears(r),
            [
                2,
                ["subscribe", "news", 1],
                ["psubscribe", "n*", 2],
                ["message", "news", "hello"],
                ["pmessage", "news", "hello"],
                ["unsubscribe", "news", 1],
                ["punsubscribe", "n*", 0],
                None,
            ],
        ),
        (waits(r, binary), [None, ["queue", "job"]]),
        (watches(r, binary), "GET watched"),
        # Errors; a server that is silent; one that has closed the connection.
        (error(r.lpush, "city", "x"), f"ResponseError: {wrong}"),
        (error(r.pipeline().lpush("city", "x").execute)[:13], "ResponseError"),
        (error(r.incr, "city"), "ResponseError: value is not an integer or out of range"),
        (error(r.execute_command, "NOSUCH")[:36], "ResponseError: unknown command 'NOSU"),
        (silence(hasty), [False, False, "TimeoutError: Timeout reading from socket"]),
        (closing(binary, r), [1, "ConnectionError: Connection closed by server.", b"lima"]),
    ):
        assert got == expected, f"{got!r} instead of {expected!r} with {options}"
    for client in (r, binary, hasty):
        client.close()


for options in ({}, {"protocol": 2}, {"protocol": 3}):
    check(**options)
print("fine")

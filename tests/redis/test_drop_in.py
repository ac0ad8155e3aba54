"""Comparison of client.py with redis-py 8: the same calls on redis-server give the same results.

Each line of CALLS is evaluated twice: for redis-py in another process, and for client.py here. The
results, including exceptions, must be the same. The test also compares signatures.
"""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
import tempfile
import unittest
from datetime import datetime, timedelta, timezone
from typing import Any, Callable, Sequence

import client
from tests.support import (
    DEADLINE,
    ROOT,
    WINDOWS,
    ServerProcess,
    new_client,
    redis_address,
    required,
    wait_until,
)

#: The server is empty at the beginning of each family. A line is an expression, or a statement
#: without a result. pipecache.py does not support all of the last two families.
CALLS = {
    "strings": """
        r.set("k", "v")
        r.get("k")
        r.get("none")
        r.set("k", "w", nx=True)
        r.set("new", "w", nx=True)
        r.set("none", "w", xx=True)
        r.set("k", "w", xx=True, get=True)
        r.set("none2", "OK", get=True)
        r.set("none2", "v", get=True)
        r.set("k", "v", ex=100)
        r.ttl("k")
        r.set("k", "v", keepttl=True)
        r.ttl("k")
        r.set("k", "v", px=100_400)
        r.ttl("k")
        r.set("k", "v", ex=timedelta(minutes=2))
        r.ttl("k")
        r.set("k", "v", px=timedelta(minutes=3))
        r.ttl("k")
        r.set("k", "v", exat=2000000000)
        r.expiretime("k")
        r.set("k", "v", exat=moment)
        r.expiretime("k")
        r.set("k", "v", pxat=2000000000123)
        r.pexpiretime("k")
        r.set("k", "v", pxat=moment)
        r.pexpiretime("k")
        r.set("k", "v", ex=0)
        r.set("k", None)
        r.set("k", True)
        r.set(b"k", bytearray(b"bytes"))
        r.get("k")
        r.set("k", 1.5)
        r.get("k")
        r.set("k", "d\\u00e9j\\u00e0 \\u20ac\\r\\nvu")
        r.get("k")
        r.getex("k")
        r.getex("k", ex=50)
        r.ttl("k")
        r.getex("k", px=60_000)
        r.ttl("k")
        r.getex("k", exat=moment)
        r.expiretime("k")
        r.getex("k", pxat=moment)
        r.getex("k", persist=True)
        r.ttl("k")
        r.getdel("k")
        r.getdel("k")
        r.getset("k", "Hello World")
        r.getset("k", "Hello World")
        r.getrange("k", 0, 4)
        r.getrange("k", -5, -1)
        r.getrange("none", 0, -1)
        r.setrange("k", 6, "Redis")
        r.get("k")
        r.append("k", "!")
        r.strlen("k")
        r.setnx("k", "v")
        r.setnx("l", "v")
        r.setex("l", 10, "v")
        r.setex("l", timedelta(seconds=20), "v")
        r.ttl("l")
        r.psetex("l", 30_000, "v")
        r.psetex("l", timedelta(seconds=40), "v")
        r.ttl("l")
        r.mset({"a": 1, b"b": 2.5})
        r.mget("a", "b", "none")
        r.mget(["a", "b"], "none")
        r.mget(key for key in ("a", "b"))
        r.mget([])
        r.msetnx({"a": 1, "c": 2})
        r.msetnx({"d": 1, "e": 2})
        r.incr("n")
        r.incr("n", 10)
        r.incrby("n", 4)
        r.incrby("n")
        r.decr("n")
        r.decr("n", 2)
        r.decrby("n", 3)
        r.decrby("n")
        r.incrbyfloat("n")
        r.incrbyfloat("n", 0.25)
        r.incr("k")
        r.execute_command("STRLEN", "k")
        r.execute_command("SET", "k", "v")
        r.execute_command("NO", "such")
    """,
    "keys": """
        r.mset({"a": 1, "b": 2, "c": 3, "d": 4})
        r.delete("a", "b", "none")
        r.delete("none")
        r.delete()
        r.unlink("c", "none")
        r.exists("d", "d", "none")
        r.type("d")
        r.type("none")
        r.randomkey()
        r.rename("d", "e")
        r.rename("none", "e")
        r.renamenx("e", "f")
        r.set("e", "v")
        r.renamenx("e", "f")
        r.copy("e", "g")
        r.copy("e", "g")
        r.copy("e", "g", replace=True)
        r.copy("e", "h", destination_db=0)
        r.copy("none", "g")
        r.touch("e", "f", "none")
        sorted(r.keys())
        r.keys("[g]")
        r.keys(pattern="no*")
        r.object("encoding", "f")
        r.object("ENCODING", "e")
        r.object("encoding", "none")
        r.flushdb()
        r.randomkey()
        r.mset({f"k{n}": n for n in range(100)})
        r.lpush("list", 1)
        cursor, page = r.scan()
        type(cursor).__name__, type(page).__name__, 0 < len(page) < 101
        r.scan(0, "k7", 1000)
        r.scan(cursor="0", match="k8", count=1000)
        r.scan(count=1000, _type="list")
        r.scan(cursor="x")
        len(set(r.scan_iter()))
        len(set(r.scan_iter(count=3)))
        sorted(r.scan_iter("k1*"))
        sorted(r.scan_iter(match="k2*", count=7))
        list(r.scan_iter(_type="list"))
    """,
    "expiry": """
        r.set("k", "v")
        r.ttl("k")
        r.ttl("none")
        r.expire("none", 10)
        r.expire("k", 100)
        r.expire("k", timedelta(seconds=200))
        r.ttl("k")
        r.expire("k", 50, gt=True)
        r.expire("k", 50, lt=True)
        r.expire("k", 60, nx=True)
        r.expire("k", 60, xx=True)
        r.expire("k", 60, nx=True, xx=True)
        r.expire("k", 60, gt=True, lt=True)
        r.ttl("k")
        r.pexpire("k", 70_300)
        r.ttl("k")
        r.pexpire("k", timedelta(seconds=90), nx=True)
        r.pexpire("k", timedelta(seconds=90), True)
        r.pexpire("k", timedelta(seconds=90), xx=True)
        r.ttl("k")
        r.expireat("k", 2000000000)
        r.expiretime("k")
        r.expireat("k", moment)
        r.expiretime("k")
        r.expireat("k", 5, gt=True)
        r.pexpireat("k", 2000000000123)
        r.pexpiretime("k")
        r.pexpireat("k", moment, lt=True)
        r.pexpiretime("k")
        0 < r.pttl("k") < 10 ** 15
        r.pttl("none")
        r.expiretime("none")
        r.persist("k")
        r.persist("k")
        r.expiretime("k")
        r.pexpiretime("k")
        r.expire("k", -1)
        r.exists("k")
        r.expire("k", "soon")
    """,
    "lists": """
        r.lpush("l", "a", "b", 3)
        r.rpush("l", b"c", 4.5)
        r.lpushx("l", "x")
        r.rpushx("none", "x")
        r.lpushx("none", "x", "y")
        r.rpushx("l", "x")
        r.llen("l")
        r.lrange("l", 0, -1)
        r.lrange("none", 0, -1)
        r.lindex("l", 0)
        r.lindex("l", 99)
        r.lset("l", 0, "first")
        r.lset("l", 99, "first")
        r.lset("none", 0, "first")
        r.linsert("l", "BEFORE", "a", "z")
        r.linsert("l", "after", "a", "x")
        r.linsert("l", "AFTER", "none", "x")
        r.linsert("none", "AFTER", "a", "x")
        r.lpos("l", "x")
        r.lpos("l", "none")
        r.lpos("l", "x", rank=-1)
        r.lpos("l", "x", count=0)
        r.lpos("l", "x", 1, 1, 100)
        r.lpos("l", "none", count=2)
        r.lpos("l", "x", maxlen=1)
        r.lrem("l", 1, "x")
        r.lrem("l", 0, "none")
        r.lrange("l", 0, -1)
        r.ltrim("l", 1, 4)
        r.lrange("l", 0, -1)
        r.lpop("l")
        r.rpop("l")
        r.lpop("none")
        r.lpop("none", 2)
        r.lpop("l", count=0)
        r.lpop("l", 1)
        r.rpop("l", 5)
        r.exists("l")
        r.rpush("l", 1, 2, 3, 4)
        r.lmove("l", "m")
        r.lmove("l", "m", "RIGHT", "LEFT")
        r.lmove("none", "m", src="LEFT", dest="LEFT")
        r.rpoplpush("l", "m")
        r.rpoplpush("none", "m")
        r.lmpop(2, "none", "m", direction="LEFT")
        r.lmpop(1, "m", direction="RIGHT", count=9)
        r.lmpop(1, "m", direction="RIGHT", count=9)
        r.get("l")
    """,
    "hashes": """
        r.hset("h", "a", 1)
        r.hset("h", "a", 2)
        r.hset("h", mapping={"b": "two", "c": 3.5})
        r.hset("h", "d", 4, {"e": 5}, ["f", 6, "g", 7])
        r.hset("h", items=["i", ""])
        r.hmset("h", {"a": 1, "b": 2})
        r.hsetnx("h", "a", 9)
        r.hsetnx("h", "z", 9)
        r.hget("h", "a")
        r.hget("h", "none")
        r.hmget("h", "a", "none")
        r.hmget("h", ["a", "b"], "c")
        r.hgetall("h")
        r.hgetall("none")
        r.hdel("h", "z", "none")
        r.hlen("h")
        r.hexists("h", "a")
        r.hexists("h", "none")
        r.hstrlen("h", "a")
        r.hkeys("h")
        r.hvals("h")
        r.hkeys("none")
        r.hincrby("h", "a")
        r.hincrby("h", "a", 10)
        r.hincrbyfloat("h", "a")
        r.hincrbyfloat("h", "a", 0.5)
        r.hincrby("h", "i")
        r.hset("one", "field", "value")
        r.hrandfield("one")
        r.hrandfield("one", 2)
        r.hrandfield("one", -2)
        r.hrandfield("one", 2, True)
        r.hrandfield("one", count=1, withvalues=True)
        r.hrandfield("none")
        r.hrandfield("none", 2)
        r.hscan("h")
        r.hscan("h", 0, "[ab]", 100)
        r.hscan("none", match="x", count=1)
        dict(r.hscan_iter("h"))
        list(r.hscan_iter("h", match="a", count=2))
        r.hset("big", mapping={f"f{n}": n for n in range(1000)})
        len(dict(r.hscan_iter("big", count=10)))
        r.get("h")
    """,
    "sets": """
        r.sadd("s", "a", "b", 3)
        r.sadd("s", "a", "d")
        r.sadd("t", "b", "d", "x")
        r.srem("s", 3, "none")
        r.scard("s")
        r.sismember("s", "a")
        r.sismember("s", "none")
        r.smismember("s", "a", "none")
        r.smismember("s", ["a", "b"], "none")
        r.smembers("s")
        r.smembers("none")
        r.smove("s", "t", "a")
        r.smove("s", "t", "a")
        r.sinter("s", "t")
        r.sinter(["s", "t"])
        r.sinter("s", "none")
        r.sunion("s", "t")
        r.sdiff(["t"], "s")
        r.sinterstore("to", "s", "t")
        r.sunionstore("to", ["s", "t"])
        r.sdiffstore("to", "t", "s")
        r.smembers("to")
        r.sintercard(2, ["s", "t"])
        r.sintercard(2, ["s", "t"], limit=1)
        r.sintercard(1, ["none"])
        r.sadd("one", "only")
        r.srandmember("one")
        r.srandmember("one", 3)
        r.srandmember("one", -3)
        r.srandmember("none")
        r.srandmember("none", number=3)
        r.spop("one")
        r.spop("one")
        r.spop("none", 3)
        r.sadd("one", "only")
        r.spop("one", count=3)
        cursor, page = r.sscan("s")
        cursor, sorted(page)
        r.sscan("s", 0, "b*", 100)
        r.sscan("none")
        sorted(r.sscan_iter("t"))
        sorted(r.sscan_iter("t", match="[bd]", count=1))
        r.sadd("big", *range(1000))
        len(set(r.sscan_iter("big", count=10)))
        r.llen("s")
    """,
    "sorted sets": """
        r.zadd("z", {"a": 1, "b": 2.5, "c": "3"})
        r.zadd("z", {"a": 5, "d": 4}, nx=True)
        r.zadd("z", {"a": 0, "e": 4}, xx=True, ch=True)
        r.zadd("z", {"a": 1}, gt=True, ch=True)
        r.zadd("z", {"a": 0.5}, lt=True, ch=True)
        r.zadd("z", {"a": 2}, incr=True)
        r.zadd("z", {"a": 2}, incr=True, nx=True)
        r.zadd("z", {"inf": float("inf"), "minus": float("-inf")})
        r.zincrby("z", 1.5, "a")
        r.zscore("z", "a")
        r.zscore("z", "inf")
        r.zscore("z", "none")
        r.zscore("none", "a")
        r.zmscore("z", ["a", "none", "b"])
        r.zcard("z")
        r.zcount("z", 2, 3)
        r.zcount("z", "(2.5", "+inf")
        r.zrank("z", "a")
        r.zrank("z", "none")
        r.zrevrank("z", "a")
        r.zrange("z", 0, -1)
        r.zrange("z", 0, 1, desc=True)
        r.zrange("z", 0, -1, withscores=True)
        r.zrange("z", 0, 2, True, True)
        r.zrange("z", 1, 2, withscores=True, score_cast_func=int)
        r.zrange("z", 1, 2, withscores=True, score_cast_func=lambda score: float(score) * 2)
        r.zrange("z", "-inf", 3, byscore=True)
        r.zrange("z", 3, "(2.5", desc=True, byscore=True, withscores=True)
        r.zrange("z", "-inf", "+inf", byscore=True, offset=1, num=2)
        r.zrange("z", "-inf", "+inf", byscore=True, offset=1)
        r.zrange("none", 0, -1, withscores=True)
        r.zrevrange("z", 0, 1)
        r.zrevrange("z", 0, 1, True)
        r.zrevrange("z", 1, 2, withscores=True, score_cast_func=int)
        r.zrangebyscore("z", 2, 4)
        r.zrangebyscore("z", "(2", 4, withscores=True)
        r.zrangebyscore("z", "-inf", "+inf", 1, 2, True, int)
        r.zrangebyscore("z", "-inf", "+inf", start=1)
        r.zrevrangebyscore("z", 4, 2)
        r.zrevrangebyscore("z", 4, 2, start=0, num=1, withscores=True)
        r.zrem("z", "inf", "minus", "none")
        cursor, page = r.zscan("z")
        cursor, sorted(page)
        r.zscan("z", 0, "a", 100, str)
        r.zscan("none", match="a", count=1)
        sorted(r.zscan_iter("z"))
        list(r.zscan_iter("z", match="[ab]", count=5, score_cast_func=int))
        r.zadd("big", {f"m{n}": n for n in range(1000)})
        len(dict(r.zscan_iter("big", count=10)))
        r.zadd("huge", {"m": 1e300, "n": 1.7732526297292595e18})
        r.zrange("huge", 0, -1, withscores=True, score_cast_func=int)
        r.zpopmin("z")
        r.zpopmin("none")
        r.zpopmax("z", 1)
        r.zpopmax("none", 2)
        r.zpopmin("z", count=10)
        r.zadd("z", {member: score for score, member in enumerate("abcdef")})
        r.zremrangebyrank("z", 0, 1)
        r.zremrangebyscore("z", "(4", "+inf")
        r.zrange("z", 0, -1)
        r.zadd("z", {"a": "x"})
        r.zadd("z", {"a": 1}, nx=True, gt=False)
        r.zcard("none")
        r.get("z")
    """,
    "pipelines": """
        p = r.pipeline()
        bool(p), len(p)
        p.set("k", "v").get("k").incr("n").hset("h", "f", 1).hgetall("h")
        len(p)
        p.execute()
        len(p)
        p.execute()
        r.pipeline(transaction=False).set("k", "OK").set("k", "v", get=True).get("k").execute()
        r.pipeline().set("k", "OK").set("k", "v", get=True).mget([]).mget("k").execute()
        p.zadd("z", {"a": 1}).zrange("z", 0, -1, withscores=True).zscan("z").time() and None
        [type(result).__name__ for result in p.execute()]
        p.set("k", "v").incr("k").get("k").execute()
        p.set("k", "v").incr("k").get("k").execute(raise_on_error=False)
        p.transaction = False
        p.set("k", "v").incr("k").get("k").execute()
        p.set("k", "v").lpush("k", "k").execute()
        p.set("k", "v").incr("k").get("none").smembers("none").execute(raise_on_error=False)
        r.pipeline().get("k").get().execute()
        r.pipeline().get("k").execute_command("GET").set("k", "never").execute()
        r.get("k")
        r.pipeline().get("k").execute_command("GET").execute(raise_on_error=False)
        r.pipeline(transaction=False).get("k").execute_command("GET").execute()
        r.pipeline().set("k", None).execute()
        r.pipeline().execute()
        p.set("k", 1) and p.reset()
        len(p), p.execute()
        with r.pipeline() as q: q.set("k", "lost")
        r.get("k")
        p.get("k").rename("none", "k").execute(False)
        p.keys("k*").scan(0, "k").hscan("h").execute()
        p.client_getname().config_get("maxmemory").execute()
    """,
    "transactions": """
        r.set("k", 1)
        p = r.pipeline()
        p.watch("k", "other")
        p.get("k")
        p.set("seen", "at once")
        r.get("seen")
        list(p.scan_iter("se*"))
        p.incr("seen")
        p.multi()
        p.incr("k").get("k") is p
        r.get("k")
        p.execute()
        p.watch("k")
        r.set("k", "changed")
        p.multi()
        p.set("k", "never")
        p.execute()
        r.get("k")
        p.get("k").execute()
        p.watch("k")
        p.unwatch()
        r.set("k", 5)
        p.multi()
        p.incr("k").execute()
        p.unwatch()
        p.multi()
        p.multi()
        p.watch("k")
        p.reset()
        p.get("k") and p.multi()
        p.reset()
        p.watch("k")
        r.incr("k")
        p.execute()
        p.watch("k")
        p.execute()
        p.watch("k")
        p.multi()
        p.get("k").lpush("k", 1).execute()
        p.watch("k")
        p.reset()
        r.incr("k")
        p.get("k").execute()
        r.transaction(lambda p: p.multi() or p.incr("k"), "k")
        r.transaction(lambda p: p.incr("k"))
        r.transaction(lambda p: p.multi() or (p.incr("k"), "value")[1], value_from_callable=True)
        tries = []
        r.transaction(lambda p: tries.append(1) or len(tries) > 2 or r.incr("k"), "k")
        len(tries)
        q = r.pipeline(transaction=False)
        q.watch("k")
        q.multi()
        q.get("k").get("none").execute()
    """,
    "waiting": """
        r.rpush("l", "a", "b", "c", "d", "e", "f", "g")
        r.blpop("l")
        r.blpop(["none", "l"], timeout=1)
        r.brpop("l", None)
        r.brpop(["l"], 0.5)
        r.blmove("l", "m", 1)
        r.blmove("l", "m", 0.5, "RIGHT", "LEFT")
        r.brpoplpush("l", "m")
        r.brpoplpush("none", "m", timeout=0.01)
        r.blmpop(1, 2, "none", "m", direction="LEFT")
        r.blmpop(0, 1, "m", direction="RIGHT", count=5)
        r.blpop("none", 0.01)
        r.brpop(["none", "other"], timeout=0.01)
        r.blmove("none", "m", 0.01)
        r.blmpop(0.01, 1, "none", direction="LEFT")
        r.zadd("z", {member: score + 0.5 for score, member in enumerate("abcdefgh")})
        r.bzpopmin("z")
        r.bzpopmax(["none", "z"], 1)
        r.bzpopmin("none", timeout=0.01)
        r.bzpopmax("none", 0.01)
        r.zmpop(2, ["none", "z"], min=True)[0]
        r.zmpop(1, ["z"], max=True, count=2)[1][1][0]
        r.zmpop(1, ["none"], min=True)
        r.bzmpop(1, 1, ["z"], min=True)[1][0][0]
        r.bzmpop(0.01, 1, ["none"], max=True, count=3)
        r.blpop("z", 1)
        r.blpop("none", -1)
        r.blpop("none", "soon")
        r.pipeline().blpop("none").bzpopmin("none").execute()
        r.pipeline(transaction=False).rpush("l", "x").brpop("l", 1).execute()
    """,
    "channels": """
        r.publish("news", "unheard")
        r.pubsub_channels(), r.pubsub_numsub(), r.pubsub_numpat()
        p = r.pubsub()
        p.subscribed
        p.get_message()
        p.get_message(timeout=0.01)
        list(p.listen())
        p.subscribe("news", b"other")
        p.subscribed
        p.get_message(timeout=9)
        p.get_message(timeout=9)
        p.get_message()
        p.psubscribe(["n?ws", "w*"], "x")
        [p.get_message(timeout=9) for _ in range(3)]
        p.channels, p.patterns
        sorted(r.pubsub_channels()), r.pubsub_channels("o*"), r.pubsub_channels(pattern="x")
        r.pubsub_numsub("news", "none"), r.pubsub_numpat()
        r.publish("news", "d\\u00e9j\\u00e0 vu\\r\\n")
        [p.get_message(timeout=None) for _ in range(2)]
        r.publish("weather", 1.5)
        p.get_message(True, 9)
        p.unsubscribe("other")
        p.get_message(timeout=9)
        p.channels, p.patterns
        p.unsubscribe("other")
        p.get_message(timeout=9)
        p.get_message(ignore_subscribe_messages=True, timeout=0.01)
        p.punsubscribe("x", "w*")
        [p.get_message(ignore_subscribe_messages=True, timeout=9) for _ in range(2)]
        p.unsubscribe()
        p.punsubscribe()
        p.subscribed
        [message for message in p.listen()]
        p.subscribed, p.channels, p.patterns
        seen = []
        p.subscribe("plain", handled=seen.append)
        p.psubscribe(**{"h*": lambda message: seen.append(message["pattern"])})
        [p.get_message(timeout=9)["type"] for _ in range(3)]
        r.publish("handled", "m"), r.publish("plain", "n")
        [p.get_message(timeout=9) for _ in range(3)], seen
        p.run_in_thread()
        p.unsubscribe("plain") or p.get_message(timeout=9)
        thread = p.run_in_thread(sleep_time=0.01, daemon=True)
        thread.daemon, thread.is_alive()
        r.publish("handled", "x")
        wait_until(lambda: len(seen) == 4, "the thread calls handlers")
        thread.stop()
        thread.join(9)
        thread.is_alive(), p.subscribed, p.channels
        seen[2]["data"]
        p = r.pubsub(ignore_subscribe_messages=True)
        p.subscribe("a", "b")
        [p.get_message(timeout=9) for _ in range(2)]
        r.publish("a", 1), r.publish("b", 2)
        [m for m in (p.get_message(timeout=9) for _ in range(2)) if m]
        p.reset()
        p.subscribed, p.channels
        with r.pubsub() as p: p.subscribe("c")
        p.subscribed, p.channels
    """,
    "monitor": """
        m = r.monitor()
        m.__enter__() is m
        r.set("k", 'two "words"\\n')
        command = m.next_command()
        command["command"], [*command], command["db"], command["client_type"]
        type(command["time"]).__name__, command["client_address"], command["client_port"] != ""
        r.get("k")
        next(m.listen())["command"]
        m.__exit__(None, None, None)
    """,
    "errors": """
        r.lpush("list", 1)
        r.get("list")
        r.hset("h", "f", "x")
        r.hincrby("h", "f")
        r.incrbyfloat("h")
        r.setex("k", 0, "v")
        r.lset("list", 5, 1)
        r.rename("none", "other")
        r.execute_command("EXEC")
        r.execute_command("CONFIG", "NO")
        r.zadd("list", {"a": 1})
    """,
    "compare and set": """
        r.set("k", "v", ifeq="old")
        r.delex("k")
        r.delex("k", ifeq="old")
    """,
    "server": """
        r.ping()
        r.echo("hello")
        r.mset({"a": 1, "b": 2})
        r.save()
        r.lastsave().year > 2000
        r.bgsave()
        r.dbsize()
        r.info("keyspace")
        r.info("keyspace", "cluster")
        fields(r.info("clients"))
        fields(r.info("replication"))
        r.info()["redis_version"], r.info()["mem_fragmentation_ratio"] > 0
        [type(part).__name__ for part in r.time()]
        type(r.client_id()).__name__
        r.client_getname()
        r.client_setname("me")
        r.client_setname("not me")
        r.client_getname()
        fields(r.client_info())
        r.client_info()["name"], r.client_info()["db"], r.client_info()["cmd"]
        sorted((c["name"], c["addr"], c["db"]) for c in r.client_list())
        len(r.client_list(_type="normal")), r.client_list("pubsub")
        len(r.client_list(client_id=[r.client_id()])), r.client_list(client_id=[10 ** 9])
        r.client_kill("1.2.3.4:5")
        r.client_kill_filter(_id=10 ** 9)
        r.client_kill_filter(_type="pubsub", skipme=True)
        r.client_kill_filter(addr="1.2.3.4:5", skipme=False)
        r.client_kill_filter(laddr="1.2.3.4:5")
        r.client_kill_filter(user="nobody")
        r.command_count() > 100
        r.config_get("maxmemory")
        r.config_get("maxmemory", "appendonly")
        r.config_get("none")
        len(r.config_get()) > 50
        r.config_set("maxmemory", 1)
        r.set("k", "v")
        r.pipeline().set("k", "v").execute()
        r.config_set("maxmemory", "0", "maxmemory-policy", "noeviction")
        r.config_set("none", 1)
        r.memory_usage("a") > 10
        r.memory_usage("a", samples=0) > 10
        r.memory_usage("none")
        r.object("idletime", "a") < 60
        r.flushdb()
        r.flushdb(asynchronous=True)
        r.flushall()
        r.flushall(True)
        r.dbsize()
        r.get("a", "b")
        r.execute_command("GET", "a", "b")
        r.execute_command("PING")
        r.execute_command("HELLO", "9")
    """,
}

#: Calls for which redis-py itself raises an exception, and here the server replies an error.
REFUSED_BY_THE_SERVER = (
    'r.set("k", "v", nx=True, xx=True)',
    'r.set("k", "v", ex=1, px=1)',
    'r.set("k", "v", ex=1.5)',
    'r.getex("k", ex=1, persist=True)',
    'r.hset("h")',
    'r.hset("h", "field")',
    'r.hmset("h", {})',
    'r.zadd("z", {})',
    'r.zadd("z", {"a": 1}, nx=True, gt=True)',
    'r.zadd("z", {"a": 1, "b": 2}, incr=True)',
    'r.zmscore("z", [])',
    'r.client_list("nonsense")',
    "r.client_kill_filter()",
    'r.zmpop(1, ["z"])',
    'r.bzmpop(1, 1, ["z"], min=True, max=True)',
)

#: Parameters of redis-py that client.py does not have, by the reason.
LEFT_OUT = {
    "a condition of Redis 8.4 that the server has not": {
        "set": ["ifne", "ifdeq", "ifdne"],
        "delex": ["ifne", "ifdeq", "ifdne"],
    },
    "an option newer than Redis 7.0": {
        "hscan": ["no_values"],
        "hscan_iter": ["no_values"],
        "zrank": ["withscore", "score_cast_func"],
        "zrevrank": ["withscore", "score_cast_func"],
        "client_kill_filter": ["maxage"],
    },
    "the server has no order of members by their bytes": {"zrange": ["bylex"]},
    "redis-py makes nothing of it either": {"pipeline": ["shard_hint"]},
    "a lock is of one kind, and says so when it was lost": {
        "lock": ["lock_class", "raise_on_release_error"],
    },
    "the server has no shards": {"run_in_thread": ["pubsub", "sharded_pubsub"]},
}

#: Methods with other parameters than in redis-py, and the reason.
OTHER_PARAMETERS = {
    "execute_command": "the conversion is given, where redis-py gives options to its own",
    "transaction": "what redis-py takes out of **kwargs is named",
    "client_list": "the default of client_id is (), which is immutable",
    "delifeq": "a command of Valkey 9",
    "pubsub": "what redis-py takes out of **kwargs is named",
    "cached": "redis-py has no such thing",
}

#: Parameters that redis-py does not have, because owned keys are an addition to Redis.
ADDED = {"set": ["owned"], "lock": ["owned"]}


def fields(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the name and the type of each field."""
    return [(name, type(fact).__name__) for name, fact in facts.items()]


def shown(result: Any) -> str:
    """Return a result as text; sets are sorted, and a pipeline has no address."""
    if isinstance(result, dict):
        return "{" + ", ".join(f"{shown(k)}: {shown(v)}" for k, v in result.items()) + "}"
    if isinstance(result, (list, tuple, set)):
        elements = [shown(element) for element in result]
        if isinstance(result, set):
            elements.sort()
        return f"{type(result).__name__}({', '.join(elements)})"
    if isinstance(result, Exception):
        return shown_error(result)
    return "<Pipeline>" if hasattr(result, "execute_command") else repr(result)


def shown_error(error: Exception) -> str:
    """Return the name of an exception in redis-py, and its text."""
    name = type(error).__name__
    if name in ("DataError", "TypeError"):  # the texts of the two clients differ
        return name
    ours = {"CacheError": "RedisError", "WrongTypeError": "ResponseError"}
    return f"{ours.get(name, name)}: {error}"


def transcript(r: Any, lines: str) -> list[tuple[str, str]]:
    """Evaluate the lines for the client `r`; return each line with its result."""
    moment = datetime(2033, 5, 18, 3, 33, 20, 500_000, timezone.utc)
    names = {"r": r, "timedelta": timedelta, "moment": moment, "fields": fields}
    names["wait_until"] = wait_until
    given = []
    for line in filter(None, map(str.strip, lines.splitlines())):
        try:
            try:
                code = compile(line, "<line>", "eval")
            except SyntaxError:
                exec(line, names)
                continue
            given.append((line, shown(eval(code, names))))
        except Exception as error:
            given.append((line, shown_error(error)))
    return given


def transcripts(r: Any) -> dict[str, list[tuple[str, str]]]:
    """Evaluate all of CALLS; return the results by family."""
    given = {}
    for family, lines in CALLS.items():
        r.flushall()
        given[family] = transcript(r, lines)
    given["refused"] = transcript(r, "\n".join(REFUSED_BY_THE_SERVER))
    return given


def parameters(method: Callable[..., Any]) -> list[tuple[str, str, str]]:
    """Return name, kind and default of the parameters, without self and **kwargs."""
    return [
        (parameter.name, parameter.kind.name, repr(parameter.default))
        for parameter in list(inspect.signature(method).parameters.values())[1:]
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    ]


def signatures(kind: Any) -> dict[str, list[tuple[str, str, str]]]:
    """Return the parameters of each public method of a class."""
    methods = {name: getattr(kind, name) for name in dir(kind) if not name.startswith("_")}
    return {name: parameters(method) for name, method in methods.items() if callable(method)}


REDIS_PY = """
import json, sys, warnings, redis
from tests.redis.test_drop_in import signatures, transcripts

warnings.simplefilter("ignore")  # about new commands of Redis 8
results = []
for options in ({}, {"protocol": 2}, {"decode_responses": False}):
    options = {"decode_responses": True, **options}
    with redis.Redis(unix_socket_path=sys.argv[1], **options) as r:
        results.append((options, transcripts(r)))
classes = (redis.Redis, redis.client.Pipeline, redis.lock.Lock, redis.client.Monitor)
classes += (redis.client.PubSub, redis.client.PubSubWorkerThread)
json.dump({
    "version": redis.__version__,
    "signatures": {kind.__name__: signatures(kind) for kind in classes},
    "results": results,
}, sys.stdout)
"""


@unittest.skipIf(WINDOWS, "redis-server does not run on Windows")
class DropInTests(unittest.TestCase):
    theirs: dict[str, Any]
    address: str

    @classmethod
    def setUpClass(cls) -> None:
        redis_py = required("PIPECACHE_REDIS_PY")
        cls.address = redis_address(cls)
        done = subprocess.run(
            [sys.executable, "-c", REDIS_PY, cls.address],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": redis_py, "PYTHONDONTWRITEBYTECODE": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            timeout=DEADLINE,
            check=True,
        )
        cls.theirs = json.loads(done.stdout)
        if int(cls.theirs["version"].partition(".")[0]) < 8:
            raise unittest.SkipTest("redis-py 8 needs Python 3.10")

    def test_results(self) -> None:
        for options, theirs in self.theirs["results"]:
            with new_client(self.address, decode_responses=options["decode_responses"]) as r:
                ours = transcripts(r)
            with self.subTest(**options):
                self.compare(ours, theirs, [*CALLS])
                for line, given in ours["refused"]:
                    self.assertRegex(given, "^ResponseError: ", line)
                for line, given in theirs["refused"]:
                    self.assertRegex(given, "^DataError$", line)

    def test_the_same_from_pipecache(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        file = os.path.join(folder.name, "kept.db")
        with ServerProcess("--db", file) as server, new_client(server.name) as r:
            self.compare(transcripts(r), self.theirs["results"][0][1], [*CALLS][:-2])

    def compare(
        self, ours: dict[str, Any], theirs: dict[str, Any], families: Sequence[str]
    ) -> None:
        for family in families:
            for (line, given), (_, expected) in zip(ours[family], theirs[family]):
                with self.subTest(family=family, line=line):
                    self.assertEqual(given, expected)
                    self.assertNotRegex(
                        given, "^(Name|Attribute|Index|Unicode)"
                    )  # an error of this test
            self.assertEqual(len(ours[family]), len(theirs[family]))

    def test_every_method_is_called(self) -> None:
        for name in signatures(client.Commands).keys() - {"delifeq"}:
            self.assertRegex("".join(CALLS.values()), rf"\.{name}\(")

    def test_signatures(self) -> None:
        left_out = {name: names for methods in LEFT_OUT.values() for name, names in methods.items()}
        for ours, theirs in (
            (client.Client, "Redis"),
            (client.Pipeline, "Pipeline"),
            (client.Lock, "Lock"),
            (client.PubSub, "PubSub"),
            (client.PubSubWorkerThread, "PubSubWorkerThread"),
            (client.Monitor, "Monitor"),
        ):
            for name, given in signatures(ours).items():
                with self.subTest(of=theirs, name=name):
                    expected = [
                        tuple(parameter)
                        for parameter in self.theirs["signatures"][theirs].get(name, ())
                        if parameter[0] not in left_out.get(name, ())
                    ]
                    given = [each for each in given if each[0] not in ADDED.get(name, ())]  # noqa: PLW2901
                    if name in OTHER_PARAMETERS:
                        self.assertNotEqual(given, expected)
                    else:
                        self.assertEqual(given, expected)


if __name__ == "__main__":
    unittest.main()

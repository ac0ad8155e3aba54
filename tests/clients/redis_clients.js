// A program that uses an unmodified npm client of Redis: node redis_clients.js PATH PACKAGE
// The program prints the results of all steps as JSON, which are the same with every package.
const [path, name] = process.argv.slice(2);
const numbers = Array.from({ length: 500 }, (_, number) => `number:${number}`);
const bytes = Buffer.from(Array.from({ length: 256 }, (_, code) => code));
const megabyte = "x".repeat(1 << 20);

const all = (...promises) => Promise.all(promises); // sent together, done in this order
const message = (promise) => promise.then(() => "no error", (error) => error.message);
const same = (a, b) => a.join() === b.join();

async function pages(iterator) {
  const keys = new Set();
  for await (const page of iterator) [page].flat().forEach((key) => keys.add(key));
  return keys.size;
}

// The two messages to a subscriber, and the numbers of receivers.
async function channels(reader, subscribe, publish) {
  const heard = [];
  let over;
  const last = new Promise((resolve) => (over = resolve));
  await subscribe(reader, (line) => heard.push(line) === 4 && over());
  const received = await all(publish("hello"), publish("good bye"));
  await last;
  await reader.quit();
  return [...received, ...heard];
}

async function ioredis(Redis) {
  const options = { path, connectionName: "me", retryStrategy: null };
  const redis = new Redis({ ...options, enableAutoPipelining: true });
  const other = new Redis(options);
  const exec = async (multi) =>
    (await multi.exec())?.map(([error, reply]) => error?.message ?? reply) ?? null;
  return {
    info: (await redis.info("server")).includes("redis_version:"),
    name: await redis.client("GETNAME"),
    set: await all(redis.set("city", "dubai", "EX", 60), redis.get("city"), redis.get("no")),
    options: await all(redis.set("city", "x", "NX"), redis.set("city", "oslo", "GET", "KEEPTTL")),
    expiry: await all(redis.ttl("city"), redis.persist("city"), redis.ttl("city")),
    many: await all(redis.mset({ a: 1, b: 2 }), redis.mget("a", "no", "b"), redis.del("a", "no")),
    counters: await all(redis.incr("n"), redis.incrby("n", 9), redis.incrbyfloat("f", 0.1)),
    hash: await all(redis.hset("h", { a: 1, b: "two" }), redis.hgetall("h"), redis.hget("h", "c")),
    list: await all(redis.rpush("l", "a", "b", "c"), redis.lrange("l", 0, -1), redis.lpop("l")),
    members: await all(redis.sadd("s", "a", "b", "a"), redis.sismember("s", "a"), redis.scard("s")),
    scores: await all(redis.zadd("z", 2, "b", 1, "a"), redis.zrange("z", 0, -1), redis.zcard("z")),
    multi: await exec(redis.multi().incr("n").get("city").hgetall("h").lpush("city", "x")),
    watch: [
      await redis.watch("city"),
      await other.set("city", "lima"),
      await exec(redis.multi().set("city", "rome")),
      await redis.get("city"),
    ],
    errors: await all(message(redis.lpush("city", "x")), message(redis.call("NOSUCH", "a"))),
    pipeline: (await exec(numbers.reduce((pipe, n) => pipe.set(n, n), redis.pipeline()))).length,
    together: same(await all(...numbers.map((n) => redis.get(n))), numbers),
    scan: await pages(redis.scanStream({ match: "number:*", count: 50 })),
    channels: await channels(
      new Redis(options),
      (reader, hear) => {
        reader.on("message", (channel, text) => hear(`${channel}: ${text}`));
        reader.on("pmessage", (pattern, channel, text) => hear(`${pattern} ${channel}: ${text}`));
        return all(reader.subscribe("news"), reader.psubscribe("n*"));
      },
      (text) => redis.publish("news", text),
    ),
    wait: await all(other.blpop("queue", 0), redis.rpush("queue", "job")),
    binary: [await redis.set(bytes, bytes), bytes.equals(await redis.getBuffer(bytes))],
    megabyte: [await redis.set("big", megabyte), (await redis.get("big")) === megabyte],
    quit: await all(redis.quit(), other.quit()),
  };
}

async function nodeRedis({ createClient, commandOptions, RESP_TYPES, WatchError }) {
  const open = () =>
    createClient({ socket: { path, reconnectStrategy: false }, name: "me" })
      .on("error", (error) => console.error(error))
      .connect();
  const [redis, other] = await all(open(), open());
  const getBuffer = (key) =>
    RESP_TYPES // since version 5
      ? redis.withTypeMapping({ [RESP_TYPES.BLOB_STRING]: Buffer }).get(key)
      : redis.get(commandOptions({ returnBuffers: true }), key);
  const exec = (multi) =>
    multi.exec().catch((error) => {
      if (error instanceof WatchError) return null;
      return error.replies.map((reply) => reply?.message ?? reply);
    });
  const scores = [{ score: 2, value: "b" }, { score: 1, value: "a" }];
  return {
    info: (await redis.info("server")).includes("redis_version:"),
    name: await redis.clientGetName(),
    set: await all(redis.set("city", "dubai", { EX: 60 }), redis.get("city"), redis.get("no")),
    options: await all(
      redis.set("city", "x", { NX: true }),
      redis.set("city", "oslo", { GET: true, KEEPTTL: true }),
    ),
    expiry: (await all(redis.ttl("city"), redis.persist("city"), redis.ttl("city"))).map(Number),
    many: await all(redis.mSet({ a: "1", b: "2" }), redis.mGet(["a", "no", "b"]), redis.del("a")),
    counters: await all(redis.incr("n"), redis.incrBy("n", 9), redis.incrByFloat("f", 0.1)),
    hash: await all(redis.hSet("h", { a: 1, b: "two" }), redis.hGetAll("h"), redis.hGet("h", "c")),
    list: await all(redis.rPush("l", ["a", "b", "c"]), redis.lRange("l", 0, -1), redis.lPop("l")),
    members: (
      await all(redis.sAdd("s", ["a", "b", "a"]), redis.sIsMember("s", "a"), redis.sCard("s"))
    ).map(Number),
    scores: await all(redis.zAdd("z", scores), redis.zRange("z", 0, -1), redis.zCard("z")),
    multi: await exec(redis.multi().incr("n").get("city").hGetAll("h").lPush("city", "x")),
    watch: [
      await redis.watch("city"),
      await other.set("city", "lima"),
      await exec(redis.multi().set("city", "rome")),
      await redis.get("city"),
    ],
    errors: await all(
      message(redis.lPush("city", "x")),
      message(redis.sendCommand(["NOSUCH", "a"])),
    ),
    pipeline: (await numbers.reduce((pipe, n) => pipe.set(n, n), redis.multi()).execAsPipeline())
      .length,
    together: same(await all(...numbers.map((n) => redis.get(n))), numbers),
    scan: await pages(redis.scanIterator({ MATCH: "number:*", COUNT: 50 })),
    channels: await channels(
      await open(),
      (reader, hear) =>
        all(
          reader.subscribe("news", (text, channel) => hear(`${channel}: ${text}`)),
          reader.pSubscribe("n*", (text, channel) => hear(`n* ${channel}: ${text}`)),
        ),
      (text) => redis.publish("news", text),
    ),
    wait: await all(
      other.blPop("queue", 0).then(({ key, element }) => [key, element]),
      redis.rPush("queue", "job"),
    ),
    binary: [await redis.set(bytes, bytes), bytes.equals(await getBuffer(bytes))],
    megabyte: [await redis.set("big", megabyte), (await redis.get("big")) === megabyte],
    quit: await all(redis.quit(), other.quit()),
  };
}

const client = name.startsWith("ioredis") ? ioredis : nodeRedis;
client(require(name)).then(
  (found) => console.log(JSON.stringify(found)),
  (error) => {
    console.error(error);
    process.exit(1); // its connections are still open
  },
);

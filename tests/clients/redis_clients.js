// The npm clients of Redis, unmodified, each pointed at the pipe.
const path = process.argv[2];

async function ioredis() {
  const Redis = require("ioredis");
  const redis = new Redis({ path, retryStrategy: null });
  await redis.set("city", "dubai", "EX", 60);
  const found = [await redis.get("city"), await redis.incr("n"), await redis.get("none")];
  found.push(await redis.pipeline().incr("n").get("city").exec());
  redis.disconnect();
  return found;
}

async function nodeRedis() {
  const { createClient } = require("redis");
  const redis = createClient({ socket: { path, reconnectStrategy: false }, name: "node" });
  redis.on("error", (error) => console.error(error));
  await redis.connect();
  await redis.set("city", "dubai", { EX: 60 });
  const found = [await redis.get("city"), await redis.incr("n"), await redis.get("none")];
  found.push(await Promise.all([redis.incr("n"), redis.get("city")]));
  await redis.disconnect();
  return found;
}

({ ioredis, nodeRedis })[process.argv[3]]().then(
  (found) => console.log(JSON.stringify(found)),
  (error) => {
    console.error(error);
    process.exitCode = 1;
  },
);

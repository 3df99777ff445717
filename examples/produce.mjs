// Writes rows from Node: `npm install` here, then `node produce.mjs`, with a worker running.
//
// REDIS_URL (redis://localhost:6379/0) and QUEUE (db:write:queue) say where to; the tables are those of tables.sql.
// One LPUSH is one write. What a producer without the library has to know:
//
// - Nothing is cached, and a cache entry that the Python library made of the row stays as it is until its TTL.
// - The list has no bound of its own: look at LLEN if the worker may be away for long.
// - A client that sends a command again after a lost connection sends the write twice. Twice a put, patch or delete
//   changes nothing by itself (but it can undo what somebody else wrote in between); twice an increment counts twice.
//   So this client does not send again: it raises, and the outcome is unknown.
// - Numbers beyond 2^53, and decimals, are best given as strings: Postgres reads them exactly, JavaScript's numbers
//   would not be. What is added by an increment must be a number.
// - What Postgres refuses is found by `writebehind dead list`; LPUSH cannot tell.

import { createClient } from "redis";

const queue = process.env.QUEUE ?? "db:write:queue";
const client = createClient({
  url: process.env.REDIS_URL ?? "redis://localhost:6379/0",
  disableOfflineQueue: true,
  socket: { reconnectStrategy: false },
});
client.on("error", (error) => console.error("redis:", error.message));
await client.connect();

/** Pushes writes; those of one call are applied in their order, with nothing between them. */
async function write(...messages) {
  await client.lPush(queue, messages.map((message) => JSON.stringify(message)));
}

await write({ table: "users", id: 1, data: { name: "Ada", email: "ada@example.com", balance: "10.50" } });
await write({ table: "users", id: 1, op: "patch", data: { email: "ada@lovelace.org" } });
await write({ table: "users", id: 1, op: "increment", data: { balance: 2.25 } });
await write(
  { table: "pages", id: "/home", op: "increment", data: { views: 1 } },
  { table: "pages", id: "/home", op: "increment", data: { views: 1 } },
);
await write({ table: "users", id: "9007199254740993", data: { name: "beyond 2^53" } });
await write({ table: "users", id: 2, data: { name: "nobody" } }, { table: "users", id: 2, op: "delete" });

console.log("accepted");
await client.close();

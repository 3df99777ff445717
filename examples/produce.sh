#!/bin/sh
# Writes rows by redis-cli (or valkey-cli: CLI=valkey-cli), with a worker running.
#
# REDIS_URL (redis://localhost:6379/0) and QUEUE (db:write:queue) say where to; the tables are those of tables.sql.
# What a producer without the library has to know is at the head of produce.mjs.
set -eu

cli=${CLI:-redis-cli}
url=${REDIS_URL:-redis://localhost:6379/0}
queue=${QUEUE:-db:write:queue}

push() {
    "$cli" -e -u "$url" LPUSH "$queue" "$@" >/dev/null
}

push '{"table":"users","id":1,"data":{"name":"Ada","email":"ada@example.com","balance":10.50}}'
push '{"table":"users","id":1,"op":"patch","data":{"email":"ada@lovelace.org"}}'
push '{"table":"users","id":1,"op":"increment","data":{"balance":2.25}}'
# Several writes of one LPUSH are applied in the order of its arguments.
push '{"table":"pages","id":"/home","op":"increment","data":{"views":1}}' \
    '{"table":"pages","id":"/home","op":"increment","data":{"views":1}}'
push '{"table":"users","id":2,"data":{"name":"nobody"}}' \
    '{"table":"users","id":2,"op":"delete"}'
# A column of type json, jsonb or an array is written as JSON; quotes inside the shell's quotes need no escape.

echo accepted

-- The worker's own schema: the ledger that makes each batch take effect once, and the dead letters.
-- Idempotent; `writebehind init` applies it. It touches nothing outside the schema `writebehind`.

CREATE SCHEMA IF NOT EXISTS writebehind;

-- The version of these tables. A worker that knows only earlier ones stops; `writebehind init` brings it forwards.
CREATE TABLE IF NOT EXISTS writebehind.schema_version (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    version  integer NOT NULL
);

-- One row a queue. It is updated in the same transaction as the rows of a batch: whoever reads it knows
-- what has been committed, and the row lock plus the epoch let one owner commit at a time.
CREATE TABLE IF NOT EXISTS writebehind.ledger (
    queue               text PRIMARY KEY,
    epoch               bigint NOT NULL DEFAULT 0,          -- fencing epoch: raised by each new owner
    recent_batches      bigint[] NOT NULL DEFAULT '{}',     -- ids of the last committed batches, oldest first
    applied_seq         bigint NOT NULL DEFAULT 0,          -- highest seq committed
    generations         bigint[] NOT NULL DEFAULT '{}',     -- Redis histories served, the current one last
    redis_run_id        text,                               -- the Redis process that the owner talks to
    rollback_seq        bigint NOT NULL DEFAULT 0,          -- after Redis went back: items up to this seq ...
    rollback_items      bigint NOT NULL DEFAULT 0,          -- ... among the next so many have been applied before
    owner               text,                               -- host:pid of the worker
    owner_pid           integer,                            -- its backend here, so that a stalled one can be ended
    owner_backend_start timestamptz,
    waiting_for         text,                               -- what the oldest batch waits for: a lock, a breaker
    updated_at          timestamptz NOT NULL DEFAULT now()
);

-- Writes that could not be applied, as they were received, and why. `writebehind dead retry` sends one again;
-- rejected again, it stays the same row. The ids are in the order of the writes.
CREATE TABLE IF NOT EXISTS writebehind.dead_letters (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    queue         text NOT NULL,
    batch         bigint NOT NULL,                          -- the frozen batch it came in
    position      integer NOT NULL,                         -- its place in that batch, oldest 0
    kind          text NOT NULL DEFAULT 'rejected' CHECK (kind IN ('rejected', 'rollback')),
    seq           bigint,
    body          bytea NOT NULL,                           -- the original bytes
    table_name    text,                                     -- schema.table where it is known
    key           text,                                     -- canonical primary key, as a JSON array
    cache_key     text,
    sqlstate      text,
    reason        text NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT now(),
    superseded_at timestamptz,                              -- a later write of the same key has been applied
    retried_at    timestamptz,                              -- when a retry of it was rejected, the last time
    history       jsonb NOT NULL DEFAULT '[]',              -- earlier rejections: {at, batch, sqlstate, reason}
    group_rows    jsonb                                     -- of a group: [schema.table, key] of each of its rows
);
-- For a table that an earlier version has made.
ALTER TABLE writebehind.dead_letters
    ADD COLUMN IF NOT EXISTS retried_at timestamptz,
    ADD COLUMN IF NOT EXISTS history jsonb NOT NULL DEFAULT '[]',
    ADD COLUMN IF NOT EXISTS group_rows jsonb;
CREATE INDEX IF NOT EXISTS dead_letters_batch ON writebehind.dead_letters (queue, batch);
CREATE INDEX IF NOT EXISTS dead_letters_open ON writebehind.dead_letters (queue, table_name, key)
    WHERE superseded_at IS NULL;
CREATE INDEX IF NOT EXISTS dead_letters_groups ON writebehind.dead_letters (queue)
    WHERE superseded_at IS NULL AND group_rows IS NOT NULL;

-- Last: whatever came before is there.
INSERT INTO writebehind.schema_version (version) VALUES (1)
    ON CONFLICT (only_row) DO UPDATE SET version = greatest(schema_version.version, excluded.version);

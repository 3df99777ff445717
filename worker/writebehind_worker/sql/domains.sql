-- Domains, with their base types: what numbers and keys are made of underneath.
SELECT t.oid::bigint, t.typbasetype::bigint, t.typtypmod, b.typname, b.typtype::text,
       t.typnotnull OR EXISTS (SELECT FROM pg_constraint k WHERE k.contypid = t.oid)
FROM pg_type t JOIN pg_type b ON b.oid = t.typbasetype
WHERE t.typtype = 'd'

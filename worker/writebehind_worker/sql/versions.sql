-- A number for each table that changes when it is altered: its name, columns, constraints, indexes, triggers
-- (a foreign key leaves triggers on both tables). $1: oids of tables, or null for all.
SELECT c.oid::bigint,
       hashtextextended(n.nspname || '.' || c.relname || c.relrowsecurity::text, 0)::numeric
       + (SELECT sum(hashint8extended(a.xmin::text::bigint, a.attnum))
          FROM pg_attribute a WHERE a.attrelid = c.oid)
       + (SELECT coalesce(sum(hashint8extended(k.xmin::text::bigint, k.oid::bigint)), 0)
          FROM pg_constraint k WHERE k.conrelid = c.oid)
       + (SELECT coalesce(sum(hashint8extended(i.xmin::text::bigint, i.indexrelid::bigint)), 0)
          FROM pg_index i WHERE i.indrelid = c.oid)
       + (SELECT coalesce(sum(hashint8extended(g.xmin::text::bigint, g.oid::bigint)), 0)
          FROM pg_trigger g WHERE g.tgrelid = c.oid)
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND ($1::oid[] IS NULL OR c.oid = ANY ($1::oid[]))

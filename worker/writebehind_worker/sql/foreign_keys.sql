-- The deferrable foreign keys from and to the tables $1 (oids), with the columns of both sides in one order.
SELECT k.conrelid::bigint,
       k.confrelid::bigint,
       format('%I.%I', cn.nspname, c.relname),
       format('%I.%I', pn.nspname, p.relname),
       ARRAY (SELECT a.attname::text FROM unnest(k.conkey) WITH ORDINALITY AS u(number, place)
              JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = u.number ORDER BY u.place),
       ARRAY (SELECT a.attname::text FROM unnest(k.confkey) WITH ORDINALITY AS u(number, place)
              JOIN pg_attribute a ON a.attrelid = k.confrelid AND a.attnum = u.number ORDER BY u.place),
       k.confmatchtype = 'f'
FROM pg_constraint k
JOIN pg_class c ON c.oid = k.conrelid
JOIN pg_namespace cn ON cn.oid = c.relnamespace
JOIN pg_class p ON p.oid = k.confrelid
JOIN pg_namespace pn ON pn.oid = p.relnamespace
WHERE k.contype = 'f' AND k.condeferrable
  AND (k.conrelid = ANY ($1::oid[]) OR k.confrelid = ANY ($1::oid[]))
  -- not enforced: PostgreSQL 18 and later
  AND to_jsonb(k) ->> 'conenforced' IS DISTINCT FROM 'false'
  -- one more for each partition that is referenced
  AND NOT EXISTS (SELECT FROM pg_constraint w WHERE w.oid = k.conparentid AND w.conrelid = k.conrelid)
ORDER BY k.oid

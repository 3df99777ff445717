-- What the worker must know of each table to write to it: one JSON document a table. Everything but
-- system schemas and our own; Postgres itself checks the role's rights.
SELECT json_build_object(
    'oid', c.oid::bigint,
    'schema', n.nspname,
    'name', c.relname,
    'visible', pg_table_is_visible(c.oid),
    'row_security', c.relrowsecurity,
    'partitioned', c.relkind = 'p',
    'columns', (
        SELECT json_agg(json_build_object(
            'number', a.attnum,
            'name', a.attname,
            'type', format_type(a.atttypid, a.atttypmod),
            'type_oid', a.atttypid::bigint,
            'type_name', t.typname,
            'type_type', t.typtype,
            'type_category', t.typcategory,
            'typmod', a.atttypmod,
            'not_null', a.attnotnull,
            'has_default', a.atthasdef OR a.attidentity <> '',
            'generated', a.attgenerated <> '',
            'collation', CASE WHEN co.collname IS NOT NULL AND co.collname <> 'default'
                              THEN quote_ident(cn.nspname) || '.' || quote_ident(co.collname) END,
            'deterministic', coalesce(co.collisdeterministic, true)
        ) ORDER BY a.attnum)
        FROM pg_attribute a
        JOIN pg_type t ON t.oid = a.atttypid
        LEFT JOIN pg_collation co ON co.oid = a.attcollation
        LEFT JOIN pg_namespace cn ON cn.oid = co.collnamespace
        WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    ),
    'primary_key', (
        SELECT i.indkey::int2[] FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary AND i.indisvalid
    ),
    -- a deferrable key cannot arbitrate ON CONFLICT
    'key_deferrable', EXISTS (
        SELECT FROM pg_constraint k WHERE k.conrelid = c.oid AND k.contype = 'p' AND k.condeferrable
    ),
    'checked', (
        SELECT coalesce(json_agg(DISTINCT number), '[]') FROM pg_constraint k, unnest(k.conkey) AS number
        WHERE k.conrelid = c.oid AND k.contype = 'c'
    ),
    -- columns under other unique or exclusion constraints; 0 stands for an expression
    'unique', (
        SELECT coalesce(json_agg(DISTINCT number), '[]') FROM pg_index i, unnest(i.indkey::int2[]) AS number
        WHERE i.indrelid = c.oid AND (i.indisunique OR i.indisexclusion) AND NOT i.indisprimary
    ),
    -- ROW = 1, BEFORE = 2, INSERT = 4
    'insert_triggers', EXISTS (
        SELECT FROM pg_trigger g
        WHERE g.tgrelid = c.oid AND NOT g.tgisinternal AND g.tgenabled <> 'D' AND g.tgtype::int & 7 = 7
    ),
    'foreign_keys', (
        SELECT coalesce(json_agg(json_build_object(
            'parent', k.confrelid::bigint, 'on_delete', k.confdeltype)), '[]')
        FROM pg_constraint k WHERE k.conrelid = c.oid AND k.contype = 'f'
    )
)::text
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p')
  AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'writebehind')
  AND n.nspname !~ '^pg_(toast|temp)'
ORDER BY n.nspname, c.relname

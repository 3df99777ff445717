-- What may change, refuse or lose a write to each of the tables $1 (oids), as the session's role sees them: one JSON
-- document a table. Rights on single columns count.
SELECT json_build_object(
    'oid', c.oid::bigint,
    'usage', has_schema_privilege(n.oid, 'USAGE'),
    'select', has_any_column_privilege(c.oid, 'SELECT'),
    'insert', has_any_column_privilege(c.oid, 'INSERT'),
    'update', has_any_column_privilege(c.oid, 'UPDATE'),
    'delete', has_table_privilege(c.oid, 'DELETE'),
    'unlogged', c.relpersistence = 'u',
    'is_partition', c.relispartition,
    'partition_key', CASE WHEN c.relkind = 'p' THEN pg_get_partkeydef(c.oid) END,
    'takes_any', EXISTS (
        SELECT FROM pg_partitioned_table p
        WHERE p.partrelid = c.oid AND (p.partdefid <> 0 OR p.partstrat = 'h')
    ),
    'children', (SELECT count(*) FROM pg_inherits i WHERE i.inhparent = c.oid),
    'keyed_children', (
        SELECT count(*) FROM pg_inherits i JOIN pg_index x ON x.indrelid = i.inhrelid
        WHERE i.inhparent = c.oid AND x.indisprimary AND x.indisvalid
    ),
    'key_invalid', EXISTS (
        SELECT FROM pg_index x WHERE x.indrelid = c.oid AND x.indisprimary AND NOT x.indisvalid
    ),
    'key_deferrable', EXISTS (
        SELECT FROM pg_constraint k WHERE k.conrelid = c.oid AND k.contype = 'p' AND k.condeferrable
    ),
    -- ROW = 1, BEFORE = 2
    'triggers', (
        SELECT coalesce(json_agg(g.tgname ORDER BY g.tgname), '[]') FROM pg_trigger g
        WHERE g.tgrelid = c.oid AND NOT g.tgisinternal AND g.tgenabled IN ('O', 'A') AND g.tgtype::int & 3 = 3
    ),
    -- those that a partition has of its own
    'partition_triggers', (
        SELECT coalesce(json_agg(DISTINCT g.tgname), '[]')
        FROM pg_partition_tree(c.oid) t JOIN pg_trigger g ON g.tgrelid = t.relid
        WHERE c.relkind = 'p' AND t.relid <> c.oid AND NOT g.tgisinternal AND g.tgenabled IN ('O', 'A')
          AND g.tgtype::int & 3 = 3 AND coalesce(to_jsonb(g) ->> 'tgparentid', '0') = '0'
    ),
    'rules', (
        SELECT coalesce(json_agg(r.rulename ORDER BY r.rulename), '[]') FROM pg_rewrite r
        WHERE r.ev_class = c.oid AND r.ev_type <> '1' AND r.ev_enabled <> 'D'
    ),
    'row_security', row_security_active(c.oid),
    'policies', (
        SELECT coalesce(json_agg(json_build_object(
            'command', p.polcmd,
            'permissive', p.polpermissive,
            'using', pg_get_expr(p.polqual, p.polrelid),
            'check', pg_get_expr(p.polwithcheck, p.polrelid)) ORDER BY p.polname), '[]')
        FROM pg_policy p
        WHERE p.polrelid = c.oid
          AND EXISTS (SELECT FROM unnest(p.polroles) AS role WHERE role = 0 OR pg_has_role(role, 'USAGE'))
    ),
    -- of defaults; an identity column needs no right on its own
    'sequences', (
        SELECT coalesce(json_agg(DISTINCT s.oid::regclass::text), '[]')
        FROM pg_attrdef f
        JOIN pg_depend d ON d.classid = 'pg_attrdef'::regclass AND d.objid = f.oid
            AND d.refclassid = 'pg_class'::regclass
        JOIN pg_class s ON s.oid = d.refobjid
        WHERE f.adrelid = c.oid
          AND CASE WHEN s.relkind = 'S' THEN NOT has_sequence_privilege(s.oid, 'USAGE, UPDATE') END
    )
)::text
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.oid = ANY ($1::oid[])
ORDER BY n.nspname, c.relname

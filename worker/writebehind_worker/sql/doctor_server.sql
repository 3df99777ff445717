-- What the server tells of itself and of the session's role, as one JSON document.
SELECT json_build_object(
    'role', current_user,
    'is_standby', pg_is_in_recovery(),
    'encoding', current_setting('server_encoding'),
    'search_path', current_schemas(false),
    'may_temporary', has_database_privilege(current_database(), 'TEMPORARY'),
    'backends', (SELECT coalesce(sum(numbackends), 0) FROM pg_stat_database),
    'role_backends', (SELECT count(*) FROM pg_stat_activity WHERE usename = current_user),
    'role_limit', (SELECT rolconnlimit FROM pg_roles WHERE rolname = current_user),
    -- what a new session begins with, by the server's, the database's and the role's settings and by the URL
    'settings', (
        SELECT json_object_agg(name, reset_val) FROM pg_settings
        WHERE name IN (
            'default_transaction_read_only', 'fsync', 'full_page_writes', 'synchronous_commit',
            'max_connections', 'superuser_reserved_connections', 'reserved_connections',
            'statement_timeout', 'transaction_timeout', 'idle_in_transaction_session_timeout',
            'idle_session_timeout'
        )
    )
)::text

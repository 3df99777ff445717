-- Roles of Postgres that may do just their job. Run it once as the database's owner or a superuser, after
-- `writebehind init` (which needs CREATE on the database; whoever ran it owns the schema writebehind):
--
--   psql "$ADMIN_URL" --file roles.sql
--
-- Replace `public.users, public.pages` by your tables, and the passwords (or leave them out: certificates, peer).

-- The worker: `writebehind run`. All workers of a queue use this one role: the next owner must be able to end the
-- connection of one that is stalled, and only sessions of its own role may a role end.
CREATE ROLE writebehind_worker LOGIN PASSWORD 'change-me-worker';
-- An application's loaders: what `get(…, load=…)` reads, from the primary. It needs nothing of writebehind's.
CREATE ROLE writebehind_loader LOGIN PASSWORD 'change-me-loader';
-- A person who looks: `writebehind status`, `drain`, `explain`, `verify`, `dead list`, `dead show`.
CREATE ROLE writebehind_operator LOGIN PASSWORD 'change-me-operator';
-- A person who mends what was rejected: `dead retry`, which writes by the worker, and `dead drop`, too; `verify --repair`.
CREATE ROLE writebehind_mender LOGIN PASSWORD 'change-me-mender';

DO $$BEGIN
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO writebehind_worker, writebehind_loader, writebehind_operator, '
                   'writebehind_mender', current_database());
    -- By default everybody may connect to a database, and make temporary tables in it. Where it serves only this:
    -- EXECUTE format('REVOKE CONNECT, TEMPORARY ON DATABASE %I FROM PUBLIC', current_database());
    -- EXECUTE format('GRANT TEMPORARY ON DATABASE %I TO writebehind_worker', current_database());
END$$;

-- What may be written. A default of nextval() also needs USAGE on its sequence; an identity column does not.
GRANT USAGE ON SCHEMA public TO writebehind_worker, writebehind_loader, writebehind_operator, writebehind_mender;
GRANT SELECT, INSERT, UPDATE, DELETE ON public.users, public.pages TO writebehind_worker;
GRANT SELECT ON public.users, public.pages TO writebehind_loader;
-- `explain` and `verify` compare the cache with them. Where row-level security is on, a role also needs BYPASSRLS.
GRANT SELECT ON public.users, public.pages TO writebehind_operator, writebehind_mender;

-- Its own tables.
GRANT USAGE ON SCHEMA writebehind TO writebehind_worker, writebehind_operator, writebehind_mender;
GRANT SELECT, INSERT, UPDATE ON writebehind.ledger TO writebehind_worker;
GRANT SELECT ON writebehind.schema_version TO writebehind_worker;
GRANT SELECT, INSERT, UPDATE, DELETE ON writebehind.dead_letters TO writebehind_worker;
GRANT SELECT ON writebehind.ledger, writebehind.dead_letters TO writebehind_operator, writebehind_mender;
GRANT DELETE ON writebehind.dead_letters TO writebehind_mender;

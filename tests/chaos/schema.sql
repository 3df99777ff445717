-- The tables of the chaos runs, and a trigger that records every version that each row took.

CREATE TABLE shared (      -- rows that all producers write to
    id int PRIMARY KEY,
    a text CHECK (a NOT LIKE 'bad%'), b text, n bigint NOT NULL DEFAULT 0, s bigint NOT NULL DEFAULT 0);
CREATE TABLE own (         -- rows of one producer each, written one by one
    owner int, id int, PRIMARY KEY (owner, id),
    a text CHECK (a NOT LIKE 'bad%'), b text, n bigint NOT NULL DEFAULT 0, s bigint NOT NULL DEFAULT 0);
CREATE TABLE plain (       -- rows of one producer each, written by many good writes at a time
    id int PRIMARY KEY,
    a text, b text, n bigint NOT NULL DEFAULT 0, s bigint NOT NULL DEFAULT 0);
CREATE TABLE grouped (     -- rows of one producer each, written in groups
    id int PRIMARY KEY,
    a text CHECK (a NOT LIKE 'bad%'), b text, n bigint NOT NULL DEFAULT 0, s bigint NOT NULL DEFAULT 0);
CREATE TABLE raw (         -- rows written by plain LPUSH
    id int PRIMARY KEY,
    a text, b text, n bigint NOT NULL DEFAULT 0, s bigint NOT NULL DEFAULT 0);
CREATE TABLE events (      -- rows written just once
    id text PRIMARY KEY,
    a text, b text, n bigint NOT NULL DEFAULT 0, s bigint NOT NULL DEFAULT 0);
CREATE TABLE marks (       -- one bad write in each call: its dead letter says where the call came in the order
    id text PRIMARY KEY,
    a text, b text, n bigint NOT NULL DEFAULT 0, s bigint NOT NULL DEFAULT 0);

-- The number is drawn while the row is locked: for one row, the order of numbers is that of its versions.
CREATE TABLE versions (
    version bigint GENERATED ALWAYS AS IDENTITY, relation name, id text, gone boolean,
    a text, b text, n bigint, s bigint, made_by xid8 NOT NULL DEFAULT pg_current_xact_id());

CREATE FUNCTION record_version() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        INSERT INTO versions (relation, id, gone) VALUES (TG_TABLE_NAME, OLD.id, true);
    ELSE
        INSERT INTO versions (relation, id, gone, a, b, n, s)
            VALUES (TG_TABLE_NAME, NEW.id, false, NEW.a, NEW.b, NEW.n, NEW.s);
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER version AFTER INSERT OR UPDATE OR DELETE ON shared FOR EACH ROW EXECUTE FUNCTION record_version();
CREATE TRIGGER version AFTER INSERT OR UPDATE OR DELETE ON own FOR EACH ROW EXECUTE FUNCTION record_version();
CREATE TRIGGER version AFTER INSERT OR UPDATE OR DELETE ON plain FOR EACH ROW EXECUTE FUNCTION record_version();
CREATE TRIGGER version AFTER INSERT OR UPDATE OR DELETE ON grouped FOR EACH ROW EXECUTE FUNCTION record_version();
CREATE TRIGGER version AFTER INSERT OR UPDATE OR DELETE ON raw FOR EACH ROW EXECUTE FUNCTION record_version();
CREATE TRIGGER version AFTER INSERT OR UPDATE OR DELETE ON events FOR EACH ROW EXECUTE FUNCTION record_version();
CREATE TRIGGER version AFTER INSERT OR UPDATE OR DELETE ON marks FOR EACH ROW EXECUTE FUNCTION record_version();

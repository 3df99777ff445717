-- Login sessions. The first four columns are the store's; the others are yours, each with a default or null.
CREATE TABLE sessions (
    id text PRIMARY KEY, -- the SHA-256 of the token: who reads this table can log in as nobody
    user_id text NOT NULL,
    created_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    theme text NOT NULL DEFAULT 'light',
    data jsonb -- whatever has no column of its own
);
CREATE INDEX sessions_of_user ON sessions (user_id); -- to log out everywhere
CREATE INDEX sessions_by_end ON sessions (expires_at); -- to delete those that have ended

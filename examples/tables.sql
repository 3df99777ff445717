-- What the examples write to.
CREATE TABLE users (id bigint PRIMARY KEY, name text, email text, balance numeric(12, 2));
CREATE TABLE pages (path text PRIMARY KEY, views bigint);

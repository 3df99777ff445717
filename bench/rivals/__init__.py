"""Those who bring writes to Postgres, or to Redis: each in a process of its own."""

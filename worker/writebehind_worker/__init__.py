"""The worker: brings the writes of a Redis queue to Postgres."""

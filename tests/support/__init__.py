"""What the tests share: real servers, a proxy that breaks connections, waiting for a condition."""

"""The protocol as a model, searched exhaustively: every interleaving of a small instance."""

"""The decision plane: orders, tokens, keys, audit log, and who has applied what."""

"""The session and the workers behind it."""

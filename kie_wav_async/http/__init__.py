"""HTTP: the transport and its connection settings."""

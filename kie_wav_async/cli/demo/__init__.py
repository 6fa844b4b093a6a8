"""`kie-wav demo` and `kie-wav simulate`."""

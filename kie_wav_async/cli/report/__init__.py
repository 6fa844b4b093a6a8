"""`kie-wav report` and `kie-wav resolve`."""

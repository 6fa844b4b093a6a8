"""`kie-wav bulk`."""

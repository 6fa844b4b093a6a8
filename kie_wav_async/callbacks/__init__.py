"""Callbacks of the service: signature, payload, callback URL, verification."""

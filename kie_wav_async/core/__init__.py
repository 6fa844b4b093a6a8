"""What a session decides: states, registry, policies, limits. Pure."""

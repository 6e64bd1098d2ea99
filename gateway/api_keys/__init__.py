"""Tenants: who a client key is, and how much it may use."""

"""Credentials for upstreams: a key, a key file that changes, or OAuth 2 tokens."""

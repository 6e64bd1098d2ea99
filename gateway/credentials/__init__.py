"""How requests prove whose they are: a key, a file that changes, or OAuth 2 tokens."""

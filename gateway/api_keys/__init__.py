"""Client keys: authentication, permissions and limits."""

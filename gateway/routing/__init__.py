"""Upstream accounts: what is known of each, and which one serves a turn."""

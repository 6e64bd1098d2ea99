"""Transports to accounts: one interface, and HTTP behind it."""

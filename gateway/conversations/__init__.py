"""Responses remembered: what each held, what it continued, and who made it."""

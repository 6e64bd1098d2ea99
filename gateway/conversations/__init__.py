"""Responses that are remembered, and what of a conversation an account is sent."""

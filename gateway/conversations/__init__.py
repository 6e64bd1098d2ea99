"""The conversation store, and chain and replay of conversations."""

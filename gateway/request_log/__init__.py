"""Request logs: what whole turns said, in files; off unless an operator asks for it."""

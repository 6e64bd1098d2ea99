"""The ways to an account: one interface, one module per transport."""

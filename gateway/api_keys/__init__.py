"""Client keys: whose a request is, and how much it may use."""

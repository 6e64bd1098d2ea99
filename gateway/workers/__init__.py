"""Several processes that serve clients on one machine, and the supervisor that runs them."""

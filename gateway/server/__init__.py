"""The HTTP door: twisted.web's protocol, a table of routes, and what serves each of them."""

"""The operator's view: what goes on, read over HTTP on a listener of its own."""

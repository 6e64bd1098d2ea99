"""The state that outlives the process, and that several processes share."""

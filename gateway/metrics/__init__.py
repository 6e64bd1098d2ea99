"""What the gateway measures of itself; reads everything, and the relay of events not at all."""

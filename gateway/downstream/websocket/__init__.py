"""The WebSocket door: Autobahn's protocol, and a session with its lanes on each connection."""

"""The clients' side: the HTTP server, its handlers, WebSocket connections and their sessions."""

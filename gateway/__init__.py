"""Responses gateway: OpenAI Responses API clients in front, a pool of HTTP upstreams behind."""

__version__ = "0.1.0"

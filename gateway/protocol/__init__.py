"""The Responses protocol as plain functions and small types; imports no Twisted."""

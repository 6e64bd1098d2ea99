"""What the admin side shows: plain functions from the running gateway to JSON-ready values."""

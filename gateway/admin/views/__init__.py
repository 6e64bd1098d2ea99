"""The data of the page and of ``/status``: plain functions from the running gateway to JSON."""

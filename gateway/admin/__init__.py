"""The operator's side: status page, API and ``/metrics``, on a listener of its own."""

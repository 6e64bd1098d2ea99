"""The metric families behind ``/metrics``: one module for each thing that is counted."""

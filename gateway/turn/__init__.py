"""One turn's life: from a request to its terminal event, over as many attempts as it takes."""

"""The published study: what of a run is published, what is made of it, and what is written about it."""

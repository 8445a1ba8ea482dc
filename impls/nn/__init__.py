"""Networks on top of the registry."""

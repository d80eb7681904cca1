"""CAST: dense training that ends N:M sparse."""

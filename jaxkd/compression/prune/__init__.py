"""N:M sparsity of whole networks."""

"""Making networks smaller: N:M sparsity and the training that leads to it."""

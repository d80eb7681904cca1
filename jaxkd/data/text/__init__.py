"""Text: tokenizers, documents, packing, windows, conversations."""

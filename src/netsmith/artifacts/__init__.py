"""A network as a folder: tensors, a manifest with their hashes, a card."""

"""Images and what they are read from."""

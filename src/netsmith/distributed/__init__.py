"""Several processes on one piece of work, and stopping them."""

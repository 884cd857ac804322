"""Networks for other runtimes, each checked against the network it was made from."""

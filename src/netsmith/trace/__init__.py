"""What a network computes: runs of it, and what they show."""

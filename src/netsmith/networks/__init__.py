"""Networks and what is known of them."""

"""From a source string or a module to a network, with what is known of it."""

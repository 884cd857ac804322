"""Neural Metamorphosis (Yang et al., ECCV 2024): from one network to a generator of that network at any width."""

"""Deep Model Reassembly (Yang et al., NeurIPS 2022): from a zoo to one network under a budget."""

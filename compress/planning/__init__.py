"""What will be done to every tensor, and why: settled from recipe and legality before anything is calibrated."""

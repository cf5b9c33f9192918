"""What becomes of every tensor: the plan, its recipes, its header, and how it is chosen."""

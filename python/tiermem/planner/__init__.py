"""Which rows live where, how large each cache is, what a step costs, and what the bound is."""

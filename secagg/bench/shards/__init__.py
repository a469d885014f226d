"""A round whose updates lie in a store: what it takes here, and what a large one would take on many machines."""

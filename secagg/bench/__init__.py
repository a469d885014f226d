"""What secagg costs, measured so that anyone can repeat it: peers, Clara's tables, growth, a model of one's own."""

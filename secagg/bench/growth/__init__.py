"""How cost grows with parameters, sites and links, and what breaks first: ``secagg bench growth``."""

"""Backends: plug-ins for one HE library or scheme each, found through the entry-point group ``secagg.backends``."""

"""Integrations of secagg with the programs around it. Each imports only the public face of the SDK."""

"""secagg in NVIDIA FLARE: filters for clients, an aggregator and a persistor for the server, and a recipe."""

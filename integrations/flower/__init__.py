"""secagg in Flower: a mod for the ClientApp, and a strategy that wraps another."""

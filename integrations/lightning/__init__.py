"""secagg in Lightning: a callback for the ``Trainer``."""

"""secagg in Hugging Face Transformers: a callback for the ``Trainer``."""

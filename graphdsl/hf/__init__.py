"""Real models: reading checkpoints, fetching them, tokenizers, and generating text."""

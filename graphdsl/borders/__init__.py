"""Where built layers meet software that has its own masks, caches and order of calls."""

"""Many sequences decoded together over one pool of KV blocks."""

"""Loading generated libraries and running them on torch tensors."""

"""The host side of each CUDA kernel."""

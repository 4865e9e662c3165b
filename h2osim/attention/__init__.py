"""Attention rows as exact integers: fixed point, packed triangles, softmax rows and their loops."""

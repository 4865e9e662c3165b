"""Kept sets of other packages, and the test that compares ours with them."""

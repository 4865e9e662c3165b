"""Replays of whole traces: what is asked, planned, run on the engines there are, and found."""

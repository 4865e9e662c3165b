"""The search for a policy and a split of its budget over layers and units, and its page."""

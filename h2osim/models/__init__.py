"""Running models: loading them, the attention hook, and recording traces."""

"""One file a policy, each with a module-level ``POLICY``; found by discovery, no list to edit."""

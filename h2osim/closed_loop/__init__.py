"""The closed loop: a model that decodes with an eviction policy in force, and what it loses."""

"""Studies: many texts, policies and budgets, and the page that says what was found."""

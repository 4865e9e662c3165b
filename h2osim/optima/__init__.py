"""The offline optimum: solvers, certificates, and the split of a budget over units."""

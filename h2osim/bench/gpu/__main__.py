"""Prints the measurements of :mod:`h2osim.bench.gpu`."""

from h2osim.bench.gpu import measure

for line in measure():
    goal = ""
    if line.goal is not None:
        word = "at least" if line.at_least else "at most"
        goal = f"   goal {word} {line.goal:g}: {'met' if line.met else 'NOT met'}"
    print(f"{line.what:<72} {line.value:12.4g} {line.unit}{goal}", flush=True)

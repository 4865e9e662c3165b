"""On a laptop: which policy keeps the attention of a text, and how much is left to win

No GPU and no PyTorch: the attention of a real model, SmolLM2-135M, comes with the package, recorded
over one text. What follows runs in a minute, most of it compilation, which is done once.
"""

import h2osim

# A trace holds the attention rows of some layers of a model over one text. Here the
# bundled one of a piece of prose: 768 tokens, five layers. The heads that share one
# cache are called a unit; in this model the three query heads of a KV group do.
trace = h2osim.open_trace("prose")
print(trace.name, trace.n, "tokens, layers", trace.layers, "heads", len(trace.heads))

# Three policies at three budgets. A budget is the number of tokens that a unit may
# keep; as a fraction it is a share of the text's length. Recall is the attention mass
# that fell on tokens still in the cache, divided by all of it, over the decoding steps.
policies = ["h2o", "streaming:sinks=4", "tova"]
budgets = [0.05, 0.1, 0.2]
results = h2osim.replay(trace, policies, budgets)
print(results["recall"].mean(["layer", "unit"]).to_pandas().round(3))

# How good could any policy be? The offline optimum knows the whole text and is exact:
# no schedule of evictions that holds the budget keeps more. The difference is what a
# better policy could win.
best = h2osim.optimum(trace, budgets)
regret = best["recall"] - results["recall"]
print("below the optimum:")
print(regret.mean(["layer", "unit"]).to_pandas().round(3))
assert (regret >= -1e-12).all()  # of quotients of integers; no policy keeps more than the optimum

# Where is it lost? The same numbers layer by layer, at the smallest budget.
print(regret.isel(budget=0).mean("unit").to_pandas().round(3))

# Budgets need not be equal. The best split of the same number of slots over layers and
# units, for H2O with whole scores, of which one pass over the trace gives every budget.
rule = "h2o:recent=16,scores=full"
units = results.sizes["layer"] * results.sizes["unit"]
split = h2osim.allocate(trace, 77 * units, policies=[rule]).isel(budget=0)
print("attention lost with equal budgets and with the best split:")
print(split["overall"].sel(policy=rule, split=["equal", "best"]).to_pandas().round(4))
print(split["slots"].sel(policy=rule, split="best").to_pandas())

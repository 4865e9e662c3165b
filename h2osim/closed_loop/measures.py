"""What is measured on a run that evicts nothing: names and meanings, for runs and for pages."""

from __future__ import annotations

MEASURES = {
    "value_recall": "share of sum a_j |v_j| that the cached tokens have, mean over heads",
    "output_error": "sum over steps of |o - o_S|^2 / sum of |o|^2, mean over heads and layers",
    "output_error_abs": "|o - o_S|, mean over steps, heads and layers",
    "attention_error": "sum_j (a_j - â_j)^2, mean over steps, heads and layers",
    "residual_error": "root mean square over steps and layers (without 0 and 1) of "
    "|W_o(o - o_S)| / |x|",
    "residual_error_entropy": "the same, each step weighted by the entropy of its prediction",
    "residual_sum": "|sum over layers of W_o(o - o_S)| / |x| at the last layer, mean over steps",
    "gradient_alone": "first-order KL if errors of all layers and tokens were independent",
    "gradient_token": "first-order KL if errors of different tokens were independent",
    "gradient_window": "first-order KL if errors of tokens in different windows of 32 were "
    "independent",
    "gradient_joint": "first-order KL, all errors together",
    "gradient_damped": "mean over steps of log(1 + KL_t), KL_t the first-order KL of one token's "
    "errors",
}  # fmt: skip
"""What `h2osim.closed_loop.uncompressed.measure` gives besides recall, and what each is."""

CARRIED = {
    "carried_variance": "half the variance, under the prediction, of the change of the logits to "
    "first order: `gradient_joint` without its chance",
    "carried_kl": "KL of the prediction whose logits are changed to first order",
}
"""What `h2osim.closed_loop.carrying.measure` gives of the uncompressed run, a pass for each."""

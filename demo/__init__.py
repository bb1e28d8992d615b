"""The demo checkpoint: the corpus, the training and the evaluation of a small InternLM2-shaped chat model.

Nothing in the product imports this package; it exists so that anybody can see the product work without a download."""

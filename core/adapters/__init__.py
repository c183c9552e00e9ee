"""LoRA adapters: which there are (registry), whether they fit (checks), merged into a model (merging)."""

"""Context-parallel prefill: one long prompt, or a batch of any mix, over several ranks."""

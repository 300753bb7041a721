"""Battles to token ids: templates, truncation, both orders, batches."""

"""Encoding of battles as token ids: templates, truncation, both orders, batches."""

"""Preference files of any known schema, parsed to one canonical table of battles."""

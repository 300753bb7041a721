"""Any preference file to one canonical table of battles."""

"""The student in use: Python, JSON lines, submissions."""

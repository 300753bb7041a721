"""Serving of the student: verdicts in Python and for JSON lines, submissions."""

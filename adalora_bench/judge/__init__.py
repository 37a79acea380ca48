"""Grades of MT-Bench answers: a language model behind an endpoint, and bench judge."""

"""Metrics, and what experiments report: records, claims, tables, plots, pages."""

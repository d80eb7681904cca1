"""What experiments report: records, claims, tables, plots, pages, plans."""

"""What methods train along with the student: projectors, heads, exit branches."""

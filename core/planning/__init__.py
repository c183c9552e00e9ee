"""The order of rows and fields, and what a run will cost: from a table to its plan."""

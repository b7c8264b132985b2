"""How good answers are, and what a table of them says: pure functions of records, with no run in them."""

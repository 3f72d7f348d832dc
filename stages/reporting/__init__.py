"""What the report is made of: load, compare with statistics, draw, write."""

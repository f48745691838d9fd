"""The page that is made of the rows: what it consists of, its text and its pictures."""

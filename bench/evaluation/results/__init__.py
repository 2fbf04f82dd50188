"""What an evaluation found: records, tables, a page, and the record in the bundle."""

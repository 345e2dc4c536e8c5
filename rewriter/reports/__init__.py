"""What is told of a conversion: the report as values, tables, dry runs, pictures."""

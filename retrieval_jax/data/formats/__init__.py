"""Data in files: folders, tables, and the official layouts of the field."""

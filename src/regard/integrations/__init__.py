"""The mechanisms and networks inside other libraries."""

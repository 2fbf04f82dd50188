"""The report as HTML and Markdown: its table, plots, notes and glossary."""

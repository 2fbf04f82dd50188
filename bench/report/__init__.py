"""From raw samples to a report: JSON, HTML and Markdown."""

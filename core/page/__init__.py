"""A page that stands alone: its style, tables, tiles and plots, with nothing to fetch.

Every text that is given is escaped here, so that a caller cannot forget it.
"""

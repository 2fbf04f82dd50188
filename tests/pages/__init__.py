"""Checks of the HTML pages that edgelm writes, in text and in headless Chromium."""

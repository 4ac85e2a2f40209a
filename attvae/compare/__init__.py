"""Runs side by side: tables on a terminal, one page for a browser."""

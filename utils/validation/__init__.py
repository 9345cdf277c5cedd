"""Steps 5 and 6: both protocols, their scores, tables and report."""

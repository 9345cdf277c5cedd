"""How good a mask is, in numbers, tables and pictures; needs no network."""

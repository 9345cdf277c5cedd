"""How good a mask is, in numbers, tables and pictures; knows no network."""

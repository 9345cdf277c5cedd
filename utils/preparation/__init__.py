"""Step 1: turn any source into the tree of organ folders; the three data scripts use it."""

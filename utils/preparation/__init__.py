"""Step 1: any source into the tree of organs, resumable; behind the three data scripts."""

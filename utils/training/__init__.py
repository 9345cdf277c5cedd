"""Steps 3 and 4: crops cached, batched, clicked and learnt from; the teacher's outputs stored."""

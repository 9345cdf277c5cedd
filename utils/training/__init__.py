"""Steps 3 and 4: train the teacher on cached crops, store its outputs, distil the student."""

"""What is said about a target, and the rule by which a simulated user says it."""

"""What is wrong with a device or its mesh, and what to do about it: pure checks, facts in and findings out."""

"""What this device has and what it can do: limits of the process, execution providers, measured speed."""

"""What the user configured, checked, and the path of limits that one task passes. Pure."""

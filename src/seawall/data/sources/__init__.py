"""Sources of chips, one module per layout; a file dropped in adds one."""

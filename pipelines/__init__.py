"""The guts of each ``skiprnn`` command: functions that take and return paths and results, and never print."""

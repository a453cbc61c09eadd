"""Public data sets and users' own files, turned into data files."""

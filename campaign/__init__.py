"""Attacks the command line with damaged and hostile files, kills and full disks, and counts what comes of it."""

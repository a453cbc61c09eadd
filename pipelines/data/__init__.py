"""Files: what is read from them, whoever made it, what is written to them, and the sequences that they hold."""

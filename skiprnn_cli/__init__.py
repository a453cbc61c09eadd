"""The ``skiprnn`` command: parsing, progress and messages."""

"""Videos: found, decoded, looked at by a network, and turned into files of features."""

"""``python -m skiprnn`` is the command: the only file here that knows of ``skiprnn_cli``, and nothing imports it."""

from skiprnn_cli.__main__ import main

if __name__ == "__main__":
    main()

from skiprnn_cli.main import cli

cli(prog_name="skiprnn")

from schemahub_cli.main import app

app(prog_name="schemahub")

from schemahub_cli.main import main

main()

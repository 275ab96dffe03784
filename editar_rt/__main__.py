"""`python -m editar_rt` is the `editar` command."""

from editar_rt.cli import main

if __name__ == "__main__":
    main()

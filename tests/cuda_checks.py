"""`python -m tests.cuda_checks`, which written instructions name; see `tests.benchmarks.cuda_checks`."""

from tests.benchmarks.cuda_checks import cli

if __name__ == "__main__":
    cli()

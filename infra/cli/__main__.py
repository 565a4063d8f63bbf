"""`python -m laxity.infra.cli`, as the supervisor starts our own processes."""

from laxity.infra.cli import main

if __name__ == "__main__":
    main()

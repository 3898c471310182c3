"""`python -m ambidex`: the same command as the console script."""

from ambidex.cli import main

if __name__ == "__main__":
    main()

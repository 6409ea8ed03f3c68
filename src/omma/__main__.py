"""`python -m omma`."""

from omma.cli import main

if __name__ == "__main__":
    main()

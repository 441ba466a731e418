"""``python -m pocketport``."""

from pocketport.cli import main

if __name__ == "__main__":
    main()

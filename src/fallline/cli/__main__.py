"""``python -m fallline.cli``: the command without its script."""

from fallline.cli import main

if __name__ == "__main__":
    main()

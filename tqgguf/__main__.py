"""Run the command line as `python -m tqgguf`."""

from tqgguf.cli import main

if __name__ == "__main__":
    main()

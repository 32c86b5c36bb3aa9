"""`python -m ui`: run the web server."""

from ui.app import main

if __name__ == "__main__":
    main()

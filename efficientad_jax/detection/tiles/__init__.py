"""Where the tiles of a large image lie."""

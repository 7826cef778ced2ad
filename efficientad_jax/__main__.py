"""`python -m efficientad_jax` is the command `efficientad`."""

import sys

from efficientad_jax.commands import main

if __name__ == "__main__":
    sys.exit(main())

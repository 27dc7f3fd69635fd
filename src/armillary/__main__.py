"""`python -m armillary`, and `accelerate launch -m armillary`."""

from armillary.cli import main

main()

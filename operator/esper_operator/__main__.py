"""``python -m esper_operator``."""

from esper_operator.main import main

main()

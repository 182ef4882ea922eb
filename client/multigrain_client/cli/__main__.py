"""``python -m multigrain_client.cli``: the command line if the script is not installed."""

import sys

from multigrain_client.cli.main import main

sys.exit(main())

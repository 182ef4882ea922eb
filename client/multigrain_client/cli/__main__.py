"""``python -m multigrain_client.cli``: the command line where no script is installed."""

import sys

from multigrain_client.cli.main import main

sys.exit(main())

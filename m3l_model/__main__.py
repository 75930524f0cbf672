# SPDX-License-Identifier: Apache-2.0
"""``python -m m3l_model`` is ``m3l``."""

import sys

from m3l_model.cli import main

sys.exit(main())

# SPDX-License-Identifier: Apache-2.0
"""The error a user can mend."""


class M3LError(Exception):
    """Bad input or environment; the message is one line that names what is wrong and the way out.

    The command line prints it without a traceback and exits with 2; the node logs it in one line.
    """

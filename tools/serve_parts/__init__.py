# SPDX-License-Identifier: Apache-2.0
"""What tools/serve.py is made of: the thread of the engine, the forms of requests and answers, the guard."""

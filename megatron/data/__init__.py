# SPDX-License-Identifier: Apache-2.0
"""Documents to token files, and token files to the sequences of a run, in their order.

Only what needs no torch is exported here, so that tokenising starts in a blink; `megatron.data.blend` and
`megatron.data.loader` are imported by their own names.
"""

from megatron.data.readers import Document, read_documents
from megatron.data.token_file import Sidecar, TokenFile, TokenFileWriter

__all__ = ["Document", "Sidecar", "TokenFile", "TokenFileWriter", "read_documents"]

"""What a test needs of the processor."""

import pytest
import torch

from aamlib.trunks import int8_works

needs_int8 = pytest.mark.skipif(not int8_works("cpu"), reason="torch has no eight-bit products here.")
needs_int16 = pytest.mark.skipif(
    not (int8_works("cpu") and torch.cpu._is_vnni_supported()), reason="sums of products of bytes overflow here."
)

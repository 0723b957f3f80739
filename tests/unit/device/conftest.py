"""What tests of the reference device share."""

import pytest
import torch


@pytest.fixture(scope="module")
def one_thread():
    # The tensors are tiny: on a busy machine, threads that wait for each other take 20 x longer.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)

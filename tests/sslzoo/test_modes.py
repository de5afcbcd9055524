import pytest
from torch import nn

from sslzoo.modes import evaluating


def test_every_part_gets_its_own_mode_back_even_after_an_error() -> None:
    net = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout())
    net[1].eval()

    def fail() -> None:
        with evaluating(net):
            assert not any(part.training for part in net.modules())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [part.training for part in net.modules()] == [True, True, False]

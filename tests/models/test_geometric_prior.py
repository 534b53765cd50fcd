import pytest
import torch

from robust_lr.models.layers.geometric_prior import GeometricPrior, TablePrior
from robust_lr.models.layers.local_relation import FullRelation2d, LocalRelation2d
from robust_lr.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("seeded")


def copied(layer, **options):
    """A layer with a table in place of the prior network of ``layer``, and the same transforms."""
    other = type(layer)(20, 6, prior="table", **options)
    state = {key: value for key, value in layer.state_dict().items() if not key.startswith("prior.")}
    other.load_state_dict({**state, "prior.values": other.prior.values.detach()})
    return other


@pytest.mark.parametrize("options", [{}, {"kernel_size": 3, "stride": 2}, {"channels_per_group": "all"}])
def test_a_table_of_the_network_s_values_is_the_network(options):
    network = LocalRelation2d(20, 6, **options)
    table = copied(network, **options)
    with torch.no_grad():
        table.prior.values.copy_(network.prior())
    x = torch.rand(2, 20, 9, 9)
    assert torch.equal(table(x), network(x))


def test_a_table_learns():
    layer = LocalRelation2d(16, 4, 3, prior="table")
    layer(torch.rand(1, 16, 5, 5)).square().sum().backward()
    assert layer.prior.values.shape == (2, 3, 3)
    assert layer.prior.values.grad.abs().min() > 0
    assert not layer.prior.values.any()


def test_without_a_prior_content_alone_decides():
    none = LocalRelation2d(20, 6, 5, prior="none")
    zero = copied(none, kernel_size=5)
    assert not any(name.startswith("prior") for name, _ in none.named_parameters())
    x = torch.rand(2, 20, 9, 9)
    torch.testing.assert_close(none(x), zero(x))
    still = FullRelation2d(20, 6, prior="none")
    turned = torch.rot90(x, 1, (2, 3))
    torch.testing.assert_close(still(turned), torch.rot90(still(x), 1, (2, 3)))


@pytest.mark.parametrize("kind", [GeometricPrior, TablePrior])
def test_values_anywhere_agree_with_those_of_the_window(kind):
    prior = kind(3, 5)
    for parameter in prior.parameters():
        torch.nn.init.normal_(parameter)
    line = torch.linspace(-1, 1, 5)
    torch.testing.assert_close(prior.at(line, line), prior())
    torch.testing.assert_close(prior.at(line[:2], line[3:]), prior()[:, :2, 3:])


@pytest.mark.parametrize(("groups", "kernel_size"), [(4, 5), (8, 7), (64, 7)])
def test_groups_of_a_fresh_prior_begin_with_a_direction(groups, kernel_size):
    """With PyTorch's own start the deviation is 0.1: each window is a mean, and a small network trains badly."""
    spread = torch.stack([GeometricPrior(groups, kernel_size)().flatten(1).std(1).median() for _ in range(20)])
    assert 0.5 < spread.median() < 2


def test_a_table_is_interpolated_between_its_entries():
    prior = TablePrior(1, 3)
    with torch.no_grad():
        prior.values.copy_(torch.arange(9.0).view(1, 3, 3))
    values = prior.at(torch.tensor([-0.5, 0.25]), torch.tensor([0.0, 0.5]))
    torch.testing.assert_close(values, torch.tensor([[[2.5, 3.0], [4.75, 5.25]]]))


def test_an_unknown_prior_is_named():
    with pytest.raises(InputError, match="unknown prior 'learned': choose one of network, table, none"):
        LocalRelation2d(8, 8, prior="learned")

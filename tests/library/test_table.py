"""Samples as the rows of a table, which may have gone through the input weights beforehand."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from skiprnn import RandomSkipGRU, RandomSkipLSTM, SkipGRU, SkipLSTM, compiled
from skiprnn.cells import LAYER_NORM_LSTM
from skiprnn.engines import native
from skiprnn.modules import SkipRNN
from skiprnn.networks import SequenceModel

D, H, T, B = 70, 13, 9, 5
LENGTHS = torch.tensor([9, 3, 0, 5, 9])
NETWORKS = {
    "lstm": lambda: SkipLSTM(D, H),
    "lstm, bound": lambda: SkipLSTM(D, H, gate_grad_clip=0.05),
    "gru": lambda: SkipGRU(D, H),
    "gru, reset before": lambda: SkipGRU(D, H, reset_after=False),
    "stack": lambda: SkipLSTM(D, H, 2),
    "both ways": lambda: SkipGRU(D, H, bidirectional=True),
    "no biases": lambda: SkipLSTM(D, H, bias=False),
    "16 units": lambda: SkipGRU(D, 16),
    "plain lstm": lambda: RandomSkipLSTM(D, H),
    "plain gru": lambda: RandomSkipGRU(D, H),
    "random skips": lambda: RandomSkipLSTM(D, H, p_skip=0.5),
    # looked up
    "reference": lambda: SkipLSTM(D, H, engine="reference"),
    "dropout": lambda: SkipLSTM(D, H, 2, dropout=0.3),
    "layer norm": lambda: SkipRNN(LAYER_NORM_LSTM, D, H),
    "torch": lambda: RandomSkipGRU(D, H, engine="torch"),
}
LOOKED_UP = list(NETWORKS)[-4:]
needs_compiled = pytest.mark.skipif(compiled.LIBRARY is None, reason="the compiled engine was not built")


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[bool | None]:
    """Whether rows were multiplied beforehand, of each problem of numbers; None where they were looked up."""
    asked, with_numbers = [], native.with_numbers

    def recorded(problem, **options):
        found = with_numbers(problem, **options)
        asked.append(None if found is None else not found.layers[0].weight_ih.numel())
        return found

    monkeypatch.setattr(native, "with_numbers", recorded)
    return asked


def network(name):
    torch.manual_seed(1)
    rnn = NETWORKS[name]()
    for parameter, value in rnn.named_parameters():
        if parameter.startswith("update_bias"):
            nn.init.constant_(value, -0.5)
        elif parameter.startswith(("update_weight", "bias")):
            nn.init.uniform_(value, -0.5, 0.5)
    return rnn


def drawn():
    return torch.randint(0, 6, (T, B)), torch.randn(6, D, requires_grad=True)


def results(rnn, trained, *args, **kwargs):
    """What a call gives, and all gradients."""
    trained.grad = None
    rnn.zero_grad()
    torch.manual_seed(3)  # of skips and dropout
    out = rnn(*args, **kwargs)
    output, gate = (x.data if isinstance(x, PackedSequence) else x for x in (out.output, out.update_gate))
    loss = output.square().sum() + (gate * torch.linspace(0, 1, gate.numel()).view_as(gate)).sum()
    (loss + out.state.h.sum()).backward()
    grads = {name: p.grad for name, p in rnn.named_parameters() if p.grad is not None}
    return {"output": output.detach(), "gate": gate.detach(), "table": trained.grad.clone(), **grads}


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5 * value.abs().max().item(), msg=name)


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["all steps", "lengths"])
@pytest.mark.parametrize("name", NETWORKS)
def test_is_the_same_as_looking_up(name, lengths):
    rnn = network(name)
    numbers, table = drawn()
    wanted = {k: v.clone() for k, v in results(rnn, table, table[numbers], lengths=lengths).items()}
    assert_same(results(rnn, table, numbers, lengths=lengths, table=table), wanted)
    assert (wanted["gate"] == 0).any() or name in ("plain lstm", "plain gru", "torch")


@needs_compiled
@pytest.mark.parametrize("name", NETWORKS)
def test_rows_are_multiplied_once_where_that_can_be(name, taken):
    numbers, table = drawn()
    results(network(name), table, numbers, table=table)
    assert any(taken) == (name not in LOOKED_UP)


@needs_compiled
def test_who_does_not_go_back_reads_what_is_used(taken):
    numbers, table = drawn()
    with torch.no_grad():
        network("lstm")(numbers, table=table)
        network("plain lstm")(numbers, table=table)
    assert taken == [False, True]


@needs_compiled
def test_nothing_is_multiplied_that_occurs_once(taken):
    table, numbers = torch.randn(T * B, D, requires_grad=True), torch.randperm(T * B).view(T, B)
    wanted = results(network("lstm"), table, table[numbers])
    assert_same(results(network("lstm"), table, numbers, table=table), wanted)
    assert taken in ([False], [None])  # by the number of threads: each has gradients by all rows


@needs_compiled
def test_rows_that_are_not_used_are_not_read():
    rnn, (numbers, table) = network("lstm").eval(), drawn()
    with torch.no_grad():
        wanted = rnn(numbers, table=table)
        damaged = torch.cat([table, torch.full((1, D), torch.nan)])
        found = rnn(numbers.where(wanted.update_gate == 1, 6), table=damaged)
    torch.testing.assert_close(found.output, wanted.output)
    assert (found.update_gate == 0).any()


@needs_compiled
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in (*LOOKED_UP, "random skips")])
def test_a_row_is_multiplied_where_it_is_first_used(name, threads, autocast, monkeypatch):
    keeps, asked = native.multiplies_once, []
    monkeypatch.setattr(native, "multiplies_once", lambda *given: asked.append(keeps(*given)) or asked[-1])
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        rnn, (_, table) = network(name), drawn()
        numbers = torch.randint(0, 6, (T, 40))
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            wanted = rnn(table[numbers])
            assert not any(asked)
            found = rnn(numbers, table=table)
    finally:
        torch.set_num_threads(before)
    assert any(asked) == (autocast or not name.startswith("plain"))  # all rows beforehand there
    torch.testing.assert_close(found.output, wanted.output)
    assert torch.equal(found.update_gate, wanted.update_gate)


@needs_compiled
def test_products_of_rows_are_kept_where_they_repeat(monkeypatch):
    keeps, asked = native.multiplies_once, []
    monkeypatch.setattr(native, "multiplies_once", lambda *given: asked.append(keeps(*given)) or asked[-1])
    rnn, before = network("lstm"), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            for rows in (22, 23):
                rnn(torch.randint(0, rows, (T, B)), table=torch.randn(rows, D))
    finally:
        torch.set_num_threads(before)
    assert asked == [True, False]


@needs_compiled
def test_one_or_two_numbers_a_sample():
    for features in (1, 2):
        rnn = SkipLSTM(features, H)
        nn.init.constant_(rnn.update_bias, -0.5)
        numbers, table = drawn()[0], torch.randn(6, features, requires_grad=True)
        wanted = results(rnn, table, table[numbers])
        assert_same(results(rnn, table, numbers, table=table), wanted)


@needs_compiled
@pytest.mark.parametrize("threads", [1, 3])
def test_threads_share_the_work(threads, taken):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        numbers, table = torch.randint(0, 6, (T, 40)), torch.randn(6, D, requires_grad=True)
        wanted = results(network("gru"), table, table[numbers])
        assert_same(results(network("gru"), table, numbers, table=table), wanted)
    finally:
        torch.set_num_threads(before)
    assert taken == [True]


def test_only_the_vectors_may_be_trained():
    rnn = network("lstm").requires_grad_(False)
    numbers, table = drawn()
    wanted = results(rnn, table, table[numbers])
    assert_same(results(rnn, table, numbers, table=table), wanted)
    assert wanted["table"].any()


def test_vectors_may_be_kept_as_they_are():
    rnn, (numbers, table) = network("lstm"), drawn()
    for form in (numbers, numbers.int()):
        out = rnn(form, table=table.detach())
        out.output.sum().backward()
        torch.testing.assert_close(out.output, rnn(table[numbers]).output)
    assert table.grad is None
    assert rnn.weight_ih_l0.grad.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_under_autocast_and_in_other_precisions(dtype):
    rnn, (numbers, table) = network("lstm"), drawn()
    if dtype is torch.float64:
        rnn, table = rnn.double(), table.double().detach().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
        wanted = {k: v.clone() for k, v in results(rnn, table, table[numbers]).items()}
        assert_same(results(rnn, table, numbers, table=table), wanted)


def test_forms_of_the_input():
    rnn, (numbers, table) = network("lstm"), drawn()
    output = rnn(table[numbers]).output
    torch.testing.assert_close(rnn(numbers[:, 1], table=table).output, output[:, 1])
    lengths = LENGTHS.clamp(min=1)
    packed = pack_padded_sequence(numbers, lengths, enforce_sorted=False)
    found = rnn(packed, table=table)
    wanted = rnn(packed._replace(data=table[packed.data]))
    torch.testing.assert_close(found.output.data, wanted.output.data)
    torch.testing.assert_close(found.state.h, wanted.state.h)
    first = SkipLSTM(D, H, batch_first=True)
    torch.testing.assert_close(first(numbers.T, table=table).output, first(table[numbers.T]).output)
    assert rnn(numbers[:0], table=table).output.shape == (0, B, H)


@pytest.mark.parametrize(
    ("numbers", "table", "said"),
    [
        (torch.full((T, B), 6), torch.zeros(6, D), "of the table's 6 rows, got 6..6"),
        (torch.full((T, B), -1), torch.zeros(6, D), "of the table's 6 rows, got -1..-1"),
        (torch.full((T, B), 0), torch.zeros(0, D), "of the table's 0 rows, got 0..0"),
        (torch.zeros(T, B, dtype=torch.long, device="meta"), torch.zeros(6, D), "one device, got meta and cpu"),
        (torch.zeros(T, B), torch.zeros(6, D), r"\(T, B\).* numbers of the table's rows, got torch.float32"),
        (torch.zeros(T, B, 1, dtype=torch.long), torch.zeros(6, D), r"got torch.int64 of shape \(9, 5, 1\)"),
        (torch.zeros(T, B, dtype=torch.long), torch.zeros(6, D + 1), r"D = 70, got torch.float32 of shape \(6, 71\)"),
        (torch.zeros(T, B, dtype=torch.long), torch.zeros(6, D, dtype=torch.long), "floating point numbers"),
    ],
    ids=["too large", "negative", "none there", "apart", "not integers", "not two-dimensional", "too wide", "integers"],
)
def test_what_is_no_number_of_a_row_is_refused(numbers, table, said):
    with pytest.raises(ValueError, match=said):
        SkipLSTM(D, H)(numbers, table=table)


def test_numbers_that_were_changed_before_going_back_are_noticed():
    rnn, (numbers, table) = network("lstm"), drawn()
    output = rnn(numbers, table=table).output
    numbers.fill_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_numbers_and_table_may_lie_anyhow():
    rnn = network("gru")
    table = torch.randn(D, 12, requires_grad=True)
    numbers = torch.randint(0, 6, (B, 2 * T), dtype=torch.int32).T[::2]
    wanted = results(rnn, table, table.T[::2][numbers])
    assert_same(results(rnn, table, numbers, table=table.T[::2]), wanted)
    one = torch.randn(1, D, requires_grad=True)
    wanted = results(rnn, one, one.expand(6, D)[numbers])
    assert_same(results(rnn, one, numbers, table=one.expand(6, D)), wanted)


def test_gradients_of_each_sequence_by_vmap():
    torch.manual_seed(0)
    model = SequenceModel(SkipLSTM(D, H, batch_first=True), 2, nn.Embedding(50, D))
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    x = torch.randint(0, 6, (B, T))

    def loss(parameters, x):
        return torch.func.functional_call(model, parameters, (x[None],)).output.square().sum()

    found = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    model(x[1:2]).output.square().sum().backward()
    torch.testing.assert_close(found["embedding.weight"][1], model.embedding.weight.grad)
    rnn, table = network("lstm"), torch.randn(6, D)
    torch.testing.assert_close(
        torch.func.vmap(lambda n: rnn(n, table=table).output)(x), rnn(x.T, table=table).output.transpose(0, 1)
    )


class Placed(nn.Embedding):
    def forward(self, x):
        return super().forward(x) + torch.arange(x.shape[1])[:, None] / 10


@pytest.mark.parametrize("embedding", [nn.Embedding(50, D, scale_grad_by_freq=True), Placed(50, D)])
def test_an_embedding_of_another_kind_sees_every_number(embedding):
    model = SequenceModel(SkipLSTM(D, H, batch_first=True), 2, embedding)
    x, found = torch.randint(0, 6, (B, T)), []
    for network in (model, lambda x: (model.head(model.rnn(embedding(x), every_step=False)[0]), None)):
        model.zero_grad()
        network(x)[0].square().sum().backward()
        found.append(embedding.weight.grad.clone())
    torch.testing.assert_close(*found)


def test_a_network_embeds_each_word_once(taken):
    torch.manual_seed(0)
    embedding = nn.Embedding(50, D, padding_idx=0)
    model = SequenceModel(SkipLSTM(D, H, batch_first=True), 2, embedding)
    x = torch.randint(0, 6, (B, T), dtype=torch.int32)
    x[:, 0] = 0
    found = {}
    for name in ("once", "each"):
        model.zero_grad()
        if name == "once":
            answer, gate = model(x)
        else:
            h, _, gate = model.rnn(embedding(x), every_step=False)
            answer = model.head(h)
        (answer.square().sum() + gate.sum()).backward()
        found[name] = {"answer": answer.detach(), "gate": gate.detach()}
        found[name] |= {key: p.grad.clone() for key, p in model.named_parameters()}
    assert_same(found["once"], found["each"])
    assert not found["once"]["embedding.weight"][0].any()  # padding's vector stays zero
    assert taken[0] == (compiled.LIBRARY is not None)

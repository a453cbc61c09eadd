"""SkipLSTM and SkipGRU as modules: parameters, shapes, arguments, state_dict."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from skiprnn import GRUState, LSTMState, RandomSkipGRU, RandomSkipLSTM, SkipGRU, SkipLSTM, SkipRNN
from skiprnn.cells import LAYER_NORM_LSTM, RNN
from skiprnn.engines import ENGINES

PAIRS = [(SkipLSTM, nn.LSTM), (SkipGRU, nn.GRU)]
LayerNormLSTM = partial(SkipRNN, LAYER_NORM_LSTM)


def test_parameters_have_the_documented_names_and_shapes():
    shapes = {name: tuple(p.shape) for name, p in SkipLSTM(3, 5, 2).named_parameters()}
    assert shapes == {
        "weight_ih_l0": (20, 3), "weight_hh_l0": (20, 5), "bias_ih_l0": (20,), "bias_hh_l0": (20,),
        "weight_ih_l1": (20, 5), "weight_hh_l1": (20, 5), "bias_ih_l1": (20,), "bias_hh_l1": (20,),
        "update_weight": (5,), "update_bias": (1,), "initial_h": (2, 5), "initial_c": (2, 5),
    }  # fmt: skip
    gru = {name for name, _ in SkipGRU(3, 5).named_parameters()}
    assert "initial_c" not in gru
    assert "initial_h" in gru
    fixed = {name for name, _ in SkipLSTM(3, 5, learn_initial_state=False).named_parameters()}
    assert not any(name.startswith("initial") for name in fixed)


def test_initial_values():
    torch.manual_seed(0)
    lstm = SkipLSTM(3, 400, update_bias=0.25)
    i, f, g, o = (lstm.bias_ih_l0 + lstm.bias_hh_l0).chunk(4)
    assert torch.equal(f, torch.ones(400))
    assert not torch.cat([i, g, o]).any()
    assert lstm.update_bias.item() == 0.25
    bound = (6 / (400 + 1600)) ** 0.5
    assert 0.99 * bound < lstm.weight_hh_l0.abs().max() <= bound
    assert lstm.initial_h.std().item() == pytest.approx(1, abs=0.15)
    gru = SkipGRU(3, 4)
    r, z, n = (gru.bias_ih_l0 + gru.bias_hh_l0).chunk(3)
    assert torch.cat([r, z]).tolist() == [1.0] * 8
    assert not n.any()


@pytest.mark.parametrize("kind", [SkipLSTM, RandomSkipLSTM, SkipGRU, RandomSkipGRU, LayerNormLSTM])
def test_a_memory_is_drawn_into_the_biases_of_the_gate_that_keeps_the_state(kind):
    torch.manual_seed(0)
    rnn = kind(1, 2000, 2)
    before = {name: parameter.clone() for name, parameter in rnn.named_parameters()}
    assert rnn.remember(101) is rnn
    is_lstm = "initial_c" in before
    for layer in ("l0", "l1"):
        gates = rnn.get_parameter(f"bias_ih_{layer}").detach().unflatten(0, (-1, 2000))
        kept = gates[1].exp()  # uniform in 1..100
        assert 1 <= kept.min() < 2
        assert 99 < kept.max() <= 100
        assert kept.mean().item() == pytest.approx(50.5, abs=2)
        was = before[f"bias_ih_{layer}"].unflatten(0, (-1, 2000))
        assert torch.equal(gates[0], -gates[1] if is_lstm else was[0])
        assert torch.equal(gates[2:], was[2:])
    for name, parameter in rnn.named_parameters():
        assert name.startswith("bias_ih") or torch.equal(parameter, before[name])


def test_of_a_bidirectional_network_both_directions_have_a_memory():
    rnn = SkipLSTM(1, 50, bidirectional=True).remember(1000)
    assert rnn.bias_ih_l0[50:100].max() > 5
    assert rnn.bias_ih_l0_reverse[50:100].max() > 5


@pytest.mark.parametrize(
    ("rnn", "steps", "message"),
    [
        (SkipLSTM(1, 2), 2, "a memory must be of 3 updates or more, got 2"),
        (SkipLSTM(1, 2, bias=False), 9, "make the module with bias=True"),
        (SkipRNN(RNN, 1, 2), 9, "RNNCell has no gate whose bias says how long it keeps its state"),
    ],
)
def test_where_there_can_be_no_memory(rnn, steps, message):
    with pytest.raises(ValueError, match=message):
        rnn.remember(steps)


@pytest.mark.parametrize(("skip", "plain"), PAIRS)
@pytest.mark.parametrize("num_layers", [1, 3])
def test_with_an_open_gate_it_is_torchs_own_cell(skip, plain, num_layers):
    theirs = plain(3, 7, num_layers)
    ours = skip(3, 7, num_layers, update_bias=100.0, learn_initial_state=False)
    result = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert set(result.missing_keys) == {"update_weight", "update_bias"}
    assert not result.unexpected_keys
    x = torch.randn(11, 4, 3)
    output, state, gate = ours(x)
    expected, last = theirs(x)
    assert gate.all()
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(state.h, last[0] if isinstance(last, tuple) else last)


@pytest.mark.parametrize("skip", [SkipLSTM, SkipGRU])
def test_shapes(skip):
    for batch, steps in ((4, 9), (1, 1), (1, 63), (3, 0), (0, 5)):
        output, state, gate = skip(3, 5, 2)(torch.randn(steps, batch, 3))
        assert output.shape == (steps, batch, 5)
        assert gate.shape == (steps, batch)
        assert state.h.shape == (2, batch, 5)
        assert state.update_prob.shape == state.cum_update_prob.shape == (batch,)
        assert isinstance(state, LSTMState if skip is SkipLSTM else GRUState)


@pytest.mark.parametrize("skip", [SkipLSTM, SkipGRU])
def test_batch_first_only_transposes(skip):
    rnn = skip(3, 5)
    x = torch.randn(9, 4, 3)
    output, state, gate = rnn(x, lengths=[9, 1, 5, 0])
    rnn.batch_first = True
    transposed = rnn(x.transpose(0, 1), lengths=[9, 1, 5, 0])
    assert torch.equal(transposed.output, output.transpose(0, 1))
    assert torch.equal(transposed.update_gate, gate.transpose(0, 1))
    assert torch.equal(transposed.state.h, state.h)


@pytest.mark.parametrize("lengths", [None, [9, 0, 4]])
@pytest.mark.parametrize("engine", ["reference", "events", "baseline"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_last_step_alone(engine, dtype, lengths):
    torch.manual_seed(0)
    options = {"batch_first": True, "dtype": dtype}
    rnn = (
        RandomSkipGRU(2, 5, p_skip=0.3, **options) if engine == "baseline" else SkipGRU(2, 5, engine=engine, **options)
    )
    x, results = torch.randn(3, 9, 2, dtype=dtype), []
    for every_step in (True, False):
        torch.manual_seed(1)
        output, state, gate = rnn(x, lengths=lengths, every_step=every_step)
        last = output[:, -1] if every_step else output
        assert torch.equal(last, state.h[-1])
        results.append((last, *state, gate, *torch.autograd.grad(last.square().sum(), list(rnn.parameters())[:4])))
    for whole, alone in zip(*results, strict=True):
        torch.testing.assert_close(alone, whole)


@pytest.mark.parametrize("skip", [SkipLSTM, SkipGRU])
def test_state_dict_round_trip_and_copies(skip):
    rnn, other = skip(3, 5, 2), skip(3, 5, 2)
    x = torch.randn(20, 2, 3)
    other.load_state_dict(rnn.state_dict())
    for twin in (other, copy.deepcopy(rnn)):
        assert torch.equal(twin(x).output, rnn(x).output)


def test_float64_computes_its_gate_in_float64():
    output, state, gate = SkipLSTM(3, 5, dtype=torch.float64)(torch.randn(4, 2, 3, dtype=torch.float64))
    assert {output.dtype, gate.dtype, state.update_prob.dtype} == {torch.float64}


def test_bfloat16_parameters_still_sum_in_float32():
    output, state, gate = SkipLSTM(3, 5, dtype=torch.bfloat16)(torch.randn(4, 2, 3, dtype=torch.bfloat16))
    assert output.dtype == torch.bfloat16
    assert gate.dtype == state.update_prob.dtype == torch.float32


@pytest.mark.parametrize("skip", [SkipLSTM, SkipGRU])
def test_torch_export(skip):
    rnn, x = skip(3, 5), torch.randn(4, 2, 3)
    for rnn.gate_grad_clip in (None, 0.1):
        exported = torch.export.export(rnn, (x,)).module()
        torch.testing.assert_close(exported(x).output, rnn(x).output)


def test_the_bound_of_the_gates_gradient_may_be_changed():
    rnn, x = SkipLSTM(3, 5, gate_grad_clip=0.5, update_bias=-2.0), torch.randn(30, 2, 3)
    assert rnn.gate_grad_clip == 0.5

    def gradient():
        return torch.autograd.grad(rnn(x).update_gate.sum() * 9, rnn.update_weight)[0]

    bounded, rnn.gate_grad_clip = gradient(), None
    assert not torch.equal(bounded, gradient())
    rnn.gate_grad_clip = -1.0
    with pytest.raises(ValueError, match="gate_grad_clip must be a positive number"):
        rnn(x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"input": torch.randn(3)},
            r"input must be \(T, B, D\), or \(T, D\) of one sequence, with D = 3, got shape \(3,\)",
        ),
        ({"input": torch.randn(4, 2, 2)}, r"D = 3, got shape \(4, 2, 2\)"),
        ({"input": torch.ones(4, 2, 3, dtype=torch.long)}, "floating point"),
        ({"lengths": [1]}, r"lengths must be \(2,\) integers"),
        ({"lengths": [1.0, 2.0]}, r"lengths must be \(2,\) integers"),
        ({"lengths": [1, 5]}, r"lengths must lie in 0..4, got 1..5"),
        ({"lengths": [-1, 4]}, r"lengths must lie in 0..4, got -1..4"),
        ({"state": (torch.zeros(1, 2, 5),) * 3}, "state must hold tensors of shapes"),
        ({"state": torch.zeros(1, 2, 5)}, "as a call returned it, or its h, c alone; got"),
        ({"state": SkipLSTM(3, 5).initial_state(3)}, "state must hold tensors of shapes"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        SkipLSTM(3, 5)(**{"input": torch.randn(4, 2, 3), **arguments})


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("field", ["update_prob", "cum_update_prob"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, -0.1, 1.5])
def test_a_state_whose_gate_cannot_be_is_refused(engine, field, value):
    rnn = SkipLSTM(3, 5, engine=engine)
    state = rnn.initial_state(2)._replace(**{field: torch.tensor([0.5, value], requires_grad=True)})
    calls = [
        lambda: rnn(torch.randn(4, 2, 3), state),
        lambda: rnn.step(torch.randn(2, 3), state),
        lambda: rnn.advance(state, 0),
    ]
    for call in calls:
        with pytest.raises(
            ValueError, match=rf"^{field} of a state must lie in 0\.\.1, got {value:.2}\d* for sequence 1; pass a state"
        ):
            call()


def test_probabilities_of_a_state_may_be_0_and_1():
    rnn = SkipLSTM(3, 5)
    gate = torch.tensor([0.0, 1.0], requires_grad=True)
    state = rnn.initial_state(2)._replace(update_prob=gate, cum_update_prob=gate.flip(0))
    assert rnn(torch.randn(4, 2, 3), state).update_gate[0].tolist() == [1, 1]
    assert rnn.step(torch.randn(2, 3), state).output.shape == (2, 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "warp"}, "unknown engine 'warp'"),
        ({"hidden_size": 0}, "hidden_size must be at least 1"),
        ({"num_layers": 0}, "num_layers must be at least 1"),
        ({"gate_grad_clip": 0.0}, "gate_grad_clip must be a positive number, or None, got 0.0"),
        ({"gate_grad_clip": float("nan")}, "gate_grad_clip must be a positive number"),
    ],
)
def test_bad_construction(options, message):
    with pytest.raises(ValueError, match=message):
        SkipGRU(**{"input_size": 3, "hidden_size": 5, **options})


def test_repr_says_what_it_is():
    assert repr(SkipLSTM(3, 5, 2, batch_first=True)) == "SkipLSTM(3, 5, num_layers=2, batch_first=True, engine='auto')"
    assert repr(SkipGRU(3, 5, gate_grad_clip=0.1)) == "SkipGRU(3, 5, gate_grad_clip=0.1, engine='auto')"


@pytest.mark.filterwarnings("ignore:.*torch.jit")  # of torch's own forward mode
def test_a_bounded_gradient_goes_through_functions_of_torch():
    """Gradients of functions, batches of them, and going forward; a bound that never acts changes none."""
    from torch.func import functional_call, grad, jvp, vmap

    torch.manual_seed(0)
    rnn, x = (
        SkipLSTM(2, 3, engine="reference", update_bias=-1.0, dtype=torch.float64),
        torch.randn(9, 4, 2, dtype=torch.float64),
    )
    parameters = {name: p.detach() for name, p in rnn.named_parameters()}

    def loss(parameters, x):
        out = functional_call(rnn, parameters, (x,))
        return out.output.square().mean() + out.update_gate.mean()

    found = []
    for rnn.gate_grad_clip in (None, 1e9):
        each = vmap(lambda one: grad(loss)(parameters, one[:, None])["update_weight"], 1)(x)
        found.append(
            [grad(loss)(parameters, x)["update_weight"], each, jvp(lambda x: loss(parameters, x), (x,), (x,))[1]]
        )
    for bounded, literal in zip(*found, strict=True):
        torch.testing.assert_close(bounded, literal)
    rnn.gate_grad_clip = 1e-3
    assert not torch.allclose(grad(loss)(parameters, x)["update_weight"], found[0][0])


def test_states_may_be_changed_in_place():
    out = SkipLSTM(2, 5)(torch.randn(6, 3, 2))
    out.state.h[:, 0] = 0
    out.state.c.mul_(0)
    out.state.h.sum().backward()

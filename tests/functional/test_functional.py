"""The stateless view of a module: equal to the module, pure, thread-safe."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from metalearn import UsageError, functionalize, random, tree


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(4, 4, bias=False)
        self.decode = nn.Linear(4, 4, bias=False)
        self.decode.weight = self.encode.weight
        self.shared = self.encode

    def forward(self, x):
        return self.decode(torch.tanh(self.encode(x))) + self.shared(x)


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleDict({"a": nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), "b": nn.Linear(4, 2)})
        self.scales = nn.ParameterList([nn.Parameter(torch.full((1,), 2.0)), nn.Parameter(torch.ones(1))])
        self.register_buffer("offset", torch.full((2,), 0.5), persistent=False)
        self.register_buffer("absent", None)

    def forward(self, x, *, extra=0.0):
        return self.blocks["b"](self.blocks["a"](x) * self.scales[0]) * self.scales[1] + self.offset + extra


def _modules() -> dict[str, tuple[nn.Module, torch.Tensor]]:
    torch.manual_seed(0)
    vectors, images, sequences = torch.randn(6, 4), torch.randn(6, 2, 5, 5), torch.randn(3, 6, 4)
    return {
        "linear": (nn.Linear(4, 3), vectors),
        "tied": (Tied(), vectors),
        "nested": (Nested(), vectors),
        "batch norm": (nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), vectors),
        "batch norm, cumulative": (nn.BatchNorm1d(4, momentum=None), vectors),
        "batch norm, no running statistics": (nn.BatchNorm2d(2, track_running_stats=False), images),
        "convolutions": (nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten()), images),
        "instance norm": (nn.InstanceNorm2d(2, affine=True, track_running_stats=True), images),
        "lstm": (nn.LSTM(4, 3), sequences),
        "transformer": (nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0), sequences),
    }


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", _modules())
def test_equals_the_module_over_several_calls(name: str, training: bool) -> None:
    module, x = _modules()[name]
    module.train(training)
    model, reference = functionalize(module), copy.deepcopy(module)
    buffers = model.buffers
    for _ in range(3):
        output, buffers = model(model.params, buffers, x)
        # Attention and recurrence run on kernels that have a second derivative, not on torch's fused ones.
        tolerance = 1e-6 if name in ("transformer", "lstm") else 0
        torch.testing.assert_close(output, reference(x), rtol=tolerance, atol=tolerance)
    for key, value in reference.named_buffers():
        assert torch.equal(buffers[key], value), key


@pytest.mark.parametrize("name", _modules())
def test_neither_the_module_nor_an_input_is_changed(name: str) -> None:
    module, x = _modules()[name]
    model = functionalize(module.train())
    before = copy.deepcopy(module.state_dict())
    state = copy.deepcopy((model.params, model.buffers, x))
    model(model.params, model.buffers, x)
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    for a, b in zip(tree.tensors(state), tree.tensors((model.params, model.buffers, x)), strict=True):
        assert torch.equal(a, b)
    assert all(isinstance(value, nn.Parameter) for _, value in module.named_parameters())


def test_params_share_no_memory_with_the_module() -> None:
    module = nn.Linear(2, 2)
    model = functionalize(module)
    with torch.no_grad():
        module.weight.zero_()
    assert model.params["weight"].abs().sum() > 0


def test_tied_parameters_appear_once_and_gather_both_gradients() -> None:
    module = Tied()
    model, x = functionalize(module), torch.randn(3, 4)
    assert list(model.params) == ["encode.weight"]
    grads = torch.func.grad(lambda params: model(params, model.buffers, x)[0].sum())(model.params)
    module(x).sum().backward()
    torch.testing.assert_close(grads["encode.weight"], module.encode.weight.grad)


def test_modes_do_not_touch_the_module() -> None:
    module = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(4))
    model, x = functionalize(module), torch.randn(8, 4)
    quiet = model.eval()
    output, buffers = quiet(quiet.params, quiet.buffers, x)
    torch.testing.assert_close(output, copy.deepcopy(module).eval()(x))
    assert module.training
    assert module[0].training
    assert torch.equal(buffers["1.running_mean"], model.buffers["1.running_mean"])
    trained = functionalize(module.eval()).train()
    assert not torch.equal(trained(trained.params, trained.buffers, x)[1]["1.running_mean"], torch.zeros(4))
    module.train()


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Dropout(0.5), (200, 4, 2)),
        (nn.Dropout1d(0.5), (200, 4, 2)),
        (nn.Dropout2d(0.5), (200, 4, 2, 2)),
        (nn.Dropout3d(0.5), (200, 4, 2, 2, 2)),
        (nn.AlphaDropout(0.5), (200, 4, 2)),
        (nn.FeatureAlphaDropout(0.5), (200, 4, 2, 2)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_dropout_draws_from_its_key(module: nn.Module, shape: tuple[int, ...]) -> None:
    model, x = functionalize(module), torch.ones(shape)
    first, buffers = model({}, model.buffers, x)
    again, _ = model({}, model.buffers, x)
    later, _ = model({}, buffers, x)
    assert torch.equal(first, again)
    assert not torch.equal(first, later)
    torch.manual_seed(0)
    reference = module(x)
    # The same two values as torch, a mask as coarse as torch's, and half of it dropped.
    torch.testing.assert_close(first.unique(), reference.unique())
    whole = (first == first.amax()).flatten(2)
    reference_whole = (reference == reference.amax()).flatten(2)
    assert ((whole.float().var(-1) == 0).all() == (reference_whole.float().var(-1) == 0).all()).item()
    assert abs((first == first.amax()).double().mean().item() - 0.5) < 0.08


def test_dropout_masks_are_the_same_in_a_loop_and_under_vmap() -> None:
    model, x = functionalize(nn.Dropout(0.3)), torch.randn(5, 20)
    keys = random.key(torch.arange(5))
    looped = torch.stack([model({}, {"rng": key}, row)[0] for key, row in zip(keys, x, strict=True)])
    batched = torch.vmap(lambda key, row: model({}, {"rng": key}, row)[0])(keys, x)
    assert torch.equal(looped, batched)
    assert (looped == 0).float().std(0).sum() > 0  # tasks have different masks


def test_running_statistics_are_per_task_under_vmap() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    model, x = functionalize(module), torch.randn(5, 8, 4)

    def call(x):
        return model(model.params, model.buffers, x)

    outputs, buffers = torch.vmap(call)(x)
    for index in range(5):
        output, expected = call(x[index])
        torch.testing.assert_close(outputs[index], output)
        for name, value in expected.items():
            torch.testing.assert_close(buffers[name].expand(5, *value.shape)[index], value)


def test_eight_threads_may_call_one_model() -> None:
    module = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1))
    model, x = functionalize(module), torch.randn(16, 8)
    scaled = [{name: value * (1 + index) for name, value in model.params.items()} for index in range(40)]
    expected = [model(params, model.buffers, x) for params in scaled]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda params: model(params, model.buffers, x), scaled * 8))
    for index, (output, buffers) in enumerate(results):
        assert torch.equal(output, expected[index % 40][0])
        assert torch.equal(buffers["1.running_mean"], expected[index % 40][1]["1.running_mean"])


def _raises(call, *words: str) -> None:
    with pytest.raises(UsageError) as caught:
        call()
    for word in words:
        assert word in str(caught.value)
    assert len(str(caught.value)) < 400


def test_mistakes_are_named_with_their_fix() -> None:
    model, x = functionalize(nn.Sequential(nn.Linear(4, 2), nn.Dropout(0.5))), torch.randn(3, 4)
    params, buffers = model.params, model.buffers
    _raises(lambda: model({"0.weight": params["0.weight"]}, buffers, x), "'0.bias'", "freeze")
    _raises(lambda: model({**params, "0.wieght": x}, buffers, x), "'0.wieght'", "'0.weight'")
    _raises(lambda: model({**params, "0.bias": torch.zeros(5, 2)}, buffers, x), "'0.bias'", "[5, 2]", "[2]")
    _raises(lambda: model(params, {}, x), "'rng'", "metalearn.random.key")
    _raises(lambda: functionalize(nn.LazyLinear(3)), "weight", "lazy", "once")


def test_draws_from_hidden_state_are_refused() -> None:
    class Noisy(nn.Module):
        def forward(self, x):
            return x + torch.poisson(x)

    model = functionalize(Noisy())
    _raises(lambda: model({}, model.buffers, torch.ones(2)), "poisson", "randn_like")


class _UsesItself(nn.Module):
    """The ways in which a module reaches its own state other than by attribute."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.way = way
        self.listed = [self.a, self.b]
        self.method = self.add
        self.parts = {"first": (self.a,)}

    def add(self, x):
        return self.a(x) + self.b(x)

    def forward(self, x):
        if self.way == "parameters()":
            return self.a(x) * sum(p.square().sum() for p in self.parameters())
        if self.way == "next(parameters())":
            return self.a(x.to(next(self.parameters()).dtype))
        if self.way == "_parameters":
            return x * self.a._parameters["bias"]
        if self.way == "named_parameters()":
            return self.a(x) if "a.weight" in dict(self.named_parameters()) else x
        if self.way == "a list of modules":
            return self.listed[1](self.listed[0](x))
        if self.way == "a bound method":
            return self.method(x)
        return self.parts["first"][0](x)


@pytest.mark.parametrize(
    "way",
    [
        "parameters()",
        "next(parameters())",
        "_parameters",
        "named_parameters()",
        "a list of modules",
        "a bound method",
        "nest",
    ],
)
def test_a_module_may_reach_its_state_in_many_ways(way: str) -> None:
    torch.manual_seed(0)
    module, x = _UsesItself(way), torch.randn(3, 4)
    model = functionalize(module)
    grads = torch.func.grad(lambda params: model(params, model.buffers, x)[0].sum())(model.params)
    output = module(x)
    torch.testing.assert_close(model(model.params, model.buffers, x)[0], output)
    output.sum().backward()
    for name, value in module.named_parameters():
        torch.testing.assert_close(grads[name], torch.zeros_like(value) if value.grad is None else value.grad)


def test_a_closure_over_the_modules_own_tensor_is_refused_not_silent() -> None:
    class Closed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(2))
            own = self.w
            self.fn = lambda x: x * own

        def forward(self, x):
            return self.fn(x)

    module = Closed()
    model = functionalize(module)
    _raises(lambda: model(model.params, model.buffers, torch.ones(2)), "'w'", "through `self`")
    # The module's own tensors as state are the module itself.
    assert torch.equal(model(dict(module.named_parameters()), model.buffers, torch.ones(2))[0], torch.ones(2))


def test_a_call_leaves_nothing_behind() -> None:
    class Remembers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls, self.history = 0, []

        def forward(self, x):
            self.calls += 1
            self.history.append(x)
            self.last = x
            return x * self.calls * len(self.history)

    module = Remembers()
    model, x = functionalize(module), torch.ones(2)
    for _ in range(3):
        assert torch.equal(model({}, model.buffers, x)[0], torch.ones(2))
    assert module.calls == 0
    assert module.history == []
    assert not hasattr(module, "last")


def test_in_place_modules_do_not_touch_the_callers_input() -> None:
    model, x = functionalize(nn.Sequential(nn.ReLU(inplace=True), nn.Dropout(0.5, inplace=True))), -torch.ones(3)
    assert torch.equal(model({}, model.buffers, x)[0], torch.zeros(3))
    assert torch.equal(x, -torch.ones(3))


def test_what_happens_to_the_module_later_does_not_matter() -> None:
    module, x = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), torch.randn(6, 4)
    model = functionalize(module)
    expected = model(model.params, model.buffers, x)[0]
    module.eval().double()
    module.load_state_dict({name: torch.zeros_like(value) for name, value in module.state_dict().items()}, assign=True)
    assert torch.equal(model(model.params, model.buffers, x)[0], expected)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_model_can_be_copied_and_pickled(copied) -> None:
    model, x = (
        functionalize(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))).eval(),
        torch.randn(6, 4),
    )
    other = copied(model)
    assert torch.equal(other(other.params, other.buffers, x)[0], model(model.params, model.buffers, x)[0])


def test_compiled_torchscript_is_refused() -> None:
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        scripted = torch.jit.script(nn.Linear(2, 2))
    _raises(lambda: functionalize(nn.Sequential(scripted)), "ScriptModule")

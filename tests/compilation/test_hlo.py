"""The compiler's text is read correctly: launches, loops, and work on parameters only."""

import pytest

from efficientad_jax.compilation.hlo import CompiledProgram, readable_module, shape_bytes

TEXT = """HloModule jit_f, is_scheduled=true

%inner (p.1: f32[4]) -> bf16[4] {
  %p.1 = f32[4]{0} parameter(0)
  ROOT %cast = bf16[4]{0} convert(%p.1), metadata={op_name="jit(f)/conv1/convert"}
}

%body (state: (s32[], f32[2,3])) -> (s32[], f32[2,3]) {
  %state = (s32[], f32[2,3]{1,0}) parameter(0)
  %counter = s32[] get-tuple-element(%state), index=0
  %x.1 = f32[2,3]{1,0} get-tuple-element(%state), index=1
  %step = f32[2,3]{1,0:T(8,128)} fusion(%x.1), kind=kLoop, calls=%inner, \
backend_config={"estimated_cycles":"50"}
  ROOT %next = (s32[], f32[2,3]{1,0}) tuple(%counter, %step)
}

ENTRY %main.9 (params.kernel: f32[4], images: u8[2,3]) -> f32[2,3] {
  %kernel = f32[4]{0} parameter(0), metadata={op_name="params.kernel"}
  %images = u8[2,3]{1,0} parameter(1), metadata={op_name="images"}
  %cast.2 = bf16[4]{0} fusion(%kernel), kind=kLoop, calls=%inner
  %conv = (f32[2,3]{1,0}, u8[16]{0}) custom-call(%images, %cast.2), \
custom_call_target="__cudnn$convForward", metadata={op_name="jit(f)/jvp(net)/conv1/conv"}
  %out = f32[2,3]{1,0} get-tuple-element(%conv), index=0
  %reduce-start = f32[2,3]{1,0} all-reduce-start(%out), to_apply=%inner
  %reduce-done = f32[2,3]{1,0} all-reduce-done(%reduce-start)
  %back = f32[2,3]{1,0} custom-call(%out), custom_call_target="__cudnn$convBackwardFilter"
  %zero = s32[] constant(0)
  %start = (s32[], f32[2,3]{1,0}) tuple(%zero, %reduce-done)
  %loop = (s32[], f32[2,3]{1,0}) while(%start), condition=%c, body=%body, \
backend_config={"known_trip_count":{"n":"7"}}
  ROOT %result = f32[2,3]{1,0} get-tuple-element(%loop), index=1
}
"""


@pytest.fixture
def program():
    return CompiledProgram(TEXT)


def test_launches_are_counted_with_loops_as_often_as_they_run(program):
    launches = [(launch.instruction.kind, launch.times) for launch in program.launches()]
    assert launches == [
        ("fusion", 1),
        ("convolution", 1),
        ("collective", 1),
        ("backward convolution", 1),
        ("fusion", 7),
    ]


def test_the_body_of_the_steps_is_the_loop(program):
    assert program.steps_body == "body"
    ((instruction, times),) = program.launches("body")
    assert (instruction.name, instruction.cycles, times) == ("step", 50, 1)


def test_work_on_parameters_only_is_named(program):
    assert program.prepared_parameters("params") == ["cast.2: params.kernel"]
    assert program.prepared_parameters("weights") == []


def test_modules_are_named_without_jax_transformations(program):
    by_name = {i.name: i for i in program.computations[program.entry]}
    assert readable_module(program.op_name(by_name["conv"])) == "conv1/conv"
    # A fusion without a name has that of what is in it.
    assert readable_module(program.op_name(by_name["cast.2"])) == "conv1/convert"


@pytest.mark.parametrize(
    ("shape", "size"),
    [("f32[4]{0}", 16), ("(bf16[2,3]{1,0:T(8,128)}, pred[5])", 17), ("u8[]", 1), ("token[]", 0)],
)
def test_bytes_of_shapes(shape, size):
    assert shape_bytes(shape) == size

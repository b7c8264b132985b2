"""What a compiled program moves, read from its text."""

from cascades.planning.hlo import collectives, parse, traffic

HLO = """HloModule jit_run

%small (x: f32[2]) -> f32[2] {
  ROOT %none = f32[2]{0} parameter(0)
}

%large (y: f32[2]) -> f32[2] {
  %given = f32[2]{0} parameter(0)
  ROOT %swap = f32[2]{0} collective-permute(%given), source_target_pairs={{0,1}}
}

ENTRY %main (z: f32[2]) -> f32[2] {
  %z = f32[2]{0} parameter(0)
  %either = f32[2]{0} conditional(%pred, %z, %z), branch_computations={%small, %large}
  %all-reduce.1 = f32[8,5,3584]{2,1,0:T(8,128)} all-reduce(%fusion.1), replica_groups={}
  %ar-start = (bf16[8,16]{1,0}, bf16[8,16]{1,0}) all-reduce-start(%x), replica_groups={}
  %ar-done = bf16[8,16]{1,0} all-reduce-done(%ar-start)
  %both = (f32[4]{0}, f32[2]{0}) all-reduce(%v, %w), to_apply=%add
  ROOT %all-gather.2 = bf16[8,64]{1,0} all-gather(%y), dimensions={1}
}
"""

# As libtpu prints a program: S(1) is on the chip; a cache of 4,096 bytes is updated in place by 32.
PROGRAM = """HloModule jit_run

%update (param_0.1: bf16[8,256], param_1.1: s32[2], param_2.1: bf16[2,8]) -> bf16[8,256] {
  %param_0.1 = bf16[8,256]{1,0:T(8,128)(2,1)} parameter(0)
  %param_1.1 = s32[2]{0:T(128)S(1)} parameter(1)
  %param_2.1 = bf16[2,8]{1,0:T(8,128)(2,1)S(1)} parameter(2)
  ROOT %scatter.1 = bf16[8,256]{1,0:T(8,128)(2,1)} scatter(%param_0.1, %param_1.1, %param_2.1), to_apply=%add
}

%lookup (param_0.2: bf16[1000,64], param_1.2: s32[4]) -> bf16[4,64] {
  %param_0.2 = bf16[1000,64]{1,0:T(8,128)(2,1)} parameter(0)
  %param_1.2 = s32[4]{0:T(128)S(1)} parameter(1)
  %gather.1 = bf16[4,64]{1,0:T(8,128)(2,1)} gather(%param_0.2, %param_1.2), slice_sizes={1,64}
  ROOT %reshape.1 = bf16[4,64]{1,0:T(8,128)(2,1)S(1)} reshape(%gather.1)
}

%scores (param_0.3: bf16[8,256], param_1.3: bf16[4,64]) -> f32[8] {
  %param_0.3 = bf16[8,256]{1,0:T(8,128)(2,1)} parameter(0)
  %param_1.3 = bf16[4,64]{1,0:T(8,128)(2,1)S(1)} parameter(1)
  ROOT %reduce.1 = f32[8]{0:T(128)} reduce(%param_0.3, %param_1.3), dimensions={1}, to_apply=%add
}

%body (state: (f32[8], s32[])) -> (f32[8], s32[]) {
  %state = (f32[8]{0:T(128)}, s32[]{:T(128)}) parameter(0)
  %now = f32[8]{0:T(128)} get-tuple-element(%state), index=0
  %next = f32[8]{0:T(128)} negate(%now), metadata={op_name="jit(run)/while/body/choice/neg" stack_frame_id=1}
  %count = s32[]{:T(128)S(6)} get-tuple-element(%state), index=1
  ROOT %tuple = (f32[8]{0:T(128)}, s32[]{:T(128)}) tuple(%next, %count)
}

ENTRY %main (p0: bf16[8,256], p1: bf16[1000,64], p2: s32[4], p3: s32[2], p4: bf16[2,8]) -> f32[8] {
  %p0 = bf16[8,256]{1,0:T(8,128)(2,1)} parameter(0)
  %p1 = bf16[1000,64]{1,0:T(8,128)(2,1)} parameter(1)
  %p2 = s32[4]{0:T(128)S(1)} parameter(2)
  %p3 = s32[2]{0:T(128)S(1)} parameter(3)
  %p4 = bf16[2,8]{1,0:T(8,128)(2,1)} parameter(4)
  %copy-start = (bf16[2,8]{1,0:T(8,128)(2,1)S(1)}, bf16[2,8]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) copy-start(%p4)
  %copy-done = bf16[2,8]{1,0:T(8,128)(2,1)S(1)} copy-done(%copy-start)
  %both = (f32[8]{0:S(1)}, bf16[8,256]{1,0:T(8,128)}) custom-call(%p3, %p0), output_to_operand_aliasing={{1}: (1, {})}
  %rows = bf16[4,64]{1,0:T(8,128)(2,1)S(1)} fusion(%p1, %p2), kind=kCustom, calls=%lookup
  %cache = bf16[8,256]{1,0:T(8,128)(2,1)} fusion(%p0, %p3, %copy-done), kind=kCustom, calls=%update
  %sums = f32[8]{0:T(128)} fusion(%cache, %rows), kind=kLoop, calls=%scores
  %zero = s32[]{:T(128)} constant(0)
  %pair = (f32[8]{0:T(128)}, s32[]{:T(128)}) tuple(%sums, %zero)
  %loop = (f32[8]{0:T(128)}, s32[]{:T(128)}) while(%pair), condition=%more, body=%body
  ROOT %out = f32[8]{0:T(128)} get-tuple-element(%loop), index=0
}
"""


def test_collectives_are_counted_once_with_what_they_bring():
    reduced = 8 * 5 * 3584 * 4 + 8 * 16 * 2 + 6 * 4
    found = {"all-gather": (1, 8 * 64 * 2), "all-reduce": (3, reduced), "collective-permute": (1, 8)}
    assert collectives(parse(HLO)) == found
    assert collectives(parse(PROGRAM)) == {}


def test_traffic_counts_what_is_touched_in_hbm():
    copied, looked_up, updated = 2 * 8 * 2, 4 * 64 * 2, 2 * 8 * 2
    scored, body = 8 * 256 * 2 + 8 * 4, 2 * 8 * 4
    kernel = 8 * 256 * 2  # what it reads; what it updates in place is next to nothing
    assert traffic(parse(PROGRAM)) == copied + looked_up + updated + scored + body + kernel
    assert traffic(parse(PROGRAM), within="choice") == body
    assert traffic(parse(PROGRAM), within="choic") == 0

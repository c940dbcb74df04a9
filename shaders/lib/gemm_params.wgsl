// What the forms of `modular_gemm` share: parameters, bindings, weights, results.

struct Params {
    log_n: u32,
    limbs: u32,
    // Words of an item.
    words: u32,
    // Of this launch.
    inputs: u32,
    outputs: u32,
    // Tiles of outputs.
    tiles: u32,
    // Which 16-bit half of the weights is weight (0, 0), and halves from one output to the next.
    weights_start: u32,
    weights_stride: u32,
    // 1: add to what `result` holds.
    accumulate: u32,
    grid_x: u32,
}

#include "lib/params.wgsl"
#include "lib/grid.wgsl"
#include "lib/modular.wgsl"

@group(0) @binding(1) var<storage, read> limbs: array<Limb>;
// [inputs][words]
@group(0) @binding(2) var<storage, read> x: array<u32>;
// Signed 16-bit integers, two a word.
@group(0) @binding(3) var<storage, read> weights: array<u32>;
// [outputs][words]
@group(0) @binding(4) var<storage, read_write> result: array<u32>;

// Zero outside the matrix.
fn weight(output: u32, input: u32) -> i32 {
    if (output >= params.outputs || input >= params.inputs) {
        return 0;
    }
    let half = params.weights_start + output * params.weights_stride + input;
    return bitcast<i32>(weights[half >> 1u] << (16u - 16u * (half & 1u))) >> 16u;
}

fn store(output: u32, word: u32, value: u32, m: Limb) {
    let i = output * params.words + word;
    if (params.accumulate != 0u) {
        result[i] = add_mod(value, result[i], m.p);
    } else {
        result[i] = value;
    }
}

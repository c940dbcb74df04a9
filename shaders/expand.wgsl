// Sparse polynomials of small signed integers to residues of every limb, coefficient domain. One coefficient of one
// polynomial an invocation, so that zeros and values are written in one pass.
//
// CPU twin: `CpuBackend::expand`.

struct Params {
    log_n: u32,
    limbs: u32,
    polys: u32,
    // Values a polynomial.
    count: u32,
    // 0: values are one 32-bit word; 1: two words, low first.
    wide: u32,
    grid_x: u32,
}

#include "lib/params.wgsl"
#include "lib/grid.wgsl"
#include "lib/modular.wgsl"

@group(0) @binding(1) var<storage, read> limbs: array<Limb>;
// Per exponent, 1 + the index of its value in each polynomial's list, or 0.
@group(0) @binding(2) var<storage, read> slots: array<u32>;
// Two's complement, [polys][count].
@group(0) @binding(3) var<storage, read> values: array<u32>;
// [polys][limbs][N]
@group(0) @binding(4) var<storage, read_write> result: array<u32>;

@compute @workgroup_size(256)
fn expand(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let i = item_index(workgroup, local);
    let poly = i >> params.log_n;
    if (poly >= params.polys) {
        return;
    }
    let n = 1u << params.log_n;
    let coefficient = i & (n - 1u);
    let slot = slots[coefficient];
    var words = vec2<u32>(0u, 0u);
    if (slot != 0u) {
        let value = poly * params.count + slot - 1u;
        if (params.wide != 0u) {
            words = vec2<u32>(values[2u * value], values[2u * value + 1u]);
        } else {
            let word = values[value];
            words = vec2<u32>(word, select(0u, 0xffffffffu, (word >> 31u) != 0u));
        }
    }
    var at = ((poly * params.limbs) << params.log_n) + coefficient;
    for (var limb = 0u; limb < params.limbs; limb++) {
        result[at] = reduce_signed(words, limbs[limb]);
        at += n;
    }
}

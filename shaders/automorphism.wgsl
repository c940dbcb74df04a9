// Index maps with signs in the coefficient domain: f(X) -> f(X^g), and one level of output packing. One word an invocation.
//
// CPU twins: `CpuBackend::{automorphism, pack_step}`.

struct Params {
    log_n: u32,
    limbs: u32,
    // Words of the result (of each of the two results for `pack_step`).
    words: u32,
    // `automorphism`: g^-1 mod 2N. `pack_step`: the shift, below N.
    argument: u32,
    grid_x: u32,
}

#include "lib/params.wgsl"
#include "lib/grid.wgsl"
#include "lib/modular.wgsl"

@group(0) @binding(1) var<storage, read> limbs: array<Limb>;
@group(0) @binding(2) var<storage, read> x: array<u32>;
@group(0) @binding(3) var<storage, read> odd: array<u32>;
@group(0) @binding(4) var<storage, read_write> result: array<u32>;
@group(0) @binding(5) var<storage, read_write> difference: array<u32>;

@compute @workgroup_size(256)
fn automorphism(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let i = item_index(workgroup, local);
    if (i >= params.words) {
        return;
    }
    let n = 1u << params.log_n;
    let j = i & (n - 1u);
    // X^s with s g = j mod 2N; an s in [N, 2N) stands for -X^(s - N). The product may wrap: 2N divides 2^32.
    let source = (j * params.argument) & (2u * n - 1u);
    let value = x[(i - j) + (source & (n - 1u))];
    let p = limbs[(i >> params.log_n) % params.limbs].p;
    result[i] = select(value, neg_mod(value, p), source >= n);
}

// E + X^shift O and E - X^shift O, with E in `x` and O in `odd`.
@compute @workgroup_size(256)
fn pack_step(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let i = item_index(workgroup, local);
    if (i >= params.words) {
        return;
    }
    let n = 1u << params.log_n;
    let j = i & (n - 1u);
    let p = limbs[(i >> params.log_n) % params.limbs].p;
    let even = x[i];
    let value = odd[(i - j) + ((j - params.argument) & (n - 1u))];
    let shifted = select(value, neg_mod(value, p), j < params.argument);
    result[i] = add_mod(even, shifted, p);
    difference[i] = sub_mod(even, shifted, p);
}

// Index maps: f(X) -> f(X^g), with signs in the coefficient domain and without in the NTT domain; one level of output packing.
// One word an invocation.
//
// CPU twins: `CpuBackend::{automorphism, automorphism_ntt, pack_step}`.

struct Params {
    log_n: u32,
    limbs: u32,
    // Words of the result (of each of the two results for `pack_step`).
    words: u32,
    // `automorphism`: g^-1 mod 2N. `automorphism_ntt`: g. `pack_step`: the shift, below N.
    argument: u32,
    grid_x: u32,
}

#include "lib/params.wgsl"
#include "lib/grid.wgsl"
#include "lib/modular.wgsl"
#include "lib/galois.wgsl"

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
    let source = galois_coefficient(j, params.argument, params.log_n);
    let value = x[(i - j) + (source & (n - 1u))];
    let p = limbs[(i >> params.log_n) % params.limbs].p;
    result[i] = select(value, neg_mod(value, p), source >= n);
}

@compute @workgroup_size(256)
fn automorphism_ntt(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let i = item_index(workgroup, local);
    if (i >= params.words) {
        return;
    }
    let j = i & ((1u << params.log_n) - 1u);
    result[i] = x[(i - j) + galois_source(j, params.argument, params.log_n)];
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

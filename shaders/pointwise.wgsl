// Residue-wise operations on batches [poly][limb][coefficient], four words an invocation.
//
// CPU twins: `CpuBackend::{add, sub, mul, mul_accumulate, mul_scalar}`.

struct Params {
    // Number of 4-vectors in the batch.
    vectors: u32,
    // log2(N / 4)
    log_vectors: u32,
    limbs: u32,
    grid_x: u32,
}

#include "lib/params.wgsl"
#include "lib/grid.wgsl"
#include "lib/modular.wgsl"

@group(0) @binding(1) var<storage, read> limbs: array<Limb>;
@group(0) @binding(2) var<storage, read> a: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> b: array<vec4<u32>>;
@group(0) @binding(4) var<storage, read_write> result: array<vec4<u32>>;
// One (constant, Shoup companion) a limb.
@group(0) @binding(5) var<storage, read> scalars: array<vec2<u32>>;
@group(0) @binding(6) var<storage, read> acc: array<vec4<u32>>;

fn limb_of(vector: u32) -> u32 {
    return (vector >> params.log_vectors) % params.limbs;
}

@compute @workgroup_size(256)
fn add(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let i = item_index(workgroup, local);
    if (i >= params.vectors) {
        return;
    }
    let p = limbs[limb_of(i)].p;
    let x = a[i];
    let y = b[i];
    result[i] = vec4<u32>(add_mod(x.x, y.x, p), add_mod(x.y, y.y, p), add_mod(x.z, y.z, p), add_mod(x.w, y.w, p));
}

@compute @workgroup_size(256)
fn sub(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let i = item_index(workgroup, local);
    if (i >= params.vectors) {
        return;
    }
    let p = limbs[limb_of(i)].p;
    let x = a[i];
    let y = b[i];
    result[i] = vec4<u32>(sub_mod(x.x, y.x, p), sub_mod(x.y, y.y, p), sub_mod(x.z, y.z, p), sub_mod(x.w, y.w, p));
}

@compute @workgroup_size(256)
fn mul(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let i = item_index(workgroup, local);
    if (i >= params.vectors) {
        return;
    }
    let m = limbs[limb_of(i)];
    let x = a[i];
    let y = b[i];
    result[i] = vec4<u32>(mul_mod(x.x, y.x, m), mul_mod(x.y, y.y, m), mul_mod(x.z, y.z, m), mul_mod(x.w, y.w, m));
}

@compute @workgroup_size(256)
fn mul_accumulate(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let i = item_index(workgroup, local);
    if (i >= params.vectors) {
        return;
    }
    let m = limbs[limb_of(i)];
    let x = a[i];
    let y = b[i];
    let z = acc[i];
    result[i] = vec4<u32>(
        add_mod(z.x, mul_mod(x.x, y.x, m), m.p),
        add_mod(z.y, mul_mod(x.y, y.y, m), m.p),
        add_mod(z.z, mul_mod(x.z, y.z, m), m.p),
        add_mod(z.w, mul_mod(x.w, y.w, m), m.p),
    );
}

@compute @workgroup_size(256)
fn mul_scalar(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let i = item_index(workgroup, local);
    if (i >= params.vectors) {
        return;
    }
    let limb = limb_of(i);
    let p = limbs[limb].p;
    let w = scalars[limb];
    let x = a[i];
    result[i] = vec4<u32>(
        reduce_2p(mul_shoup(x.x, w, p), p),
        reduce_2p(mul_shoup(x.y, w, p), p),
        reduce_2p(mul_shoup(x.z, w, p), p),
        reduce_2p(mul_shoup(x.w, w, p), p),
    );
}

// What a device can do at most: the yardsticks that kernels are compared with. Nothing else uses them.
//
// CPU twins: none needed, the tests compute the few words that these give.

struct Params {
    // Invocations.
    items: u32,
    // Rounds of ROUND_PRODUCTS products.
    rounds: u32,
    grid_x: u32,
}

#include "lib/params.wgsl"
#include "lib/grid.wgsl"
#include "lib/product.wgsl"

@group(0) @binding(1) var<storage, read> x: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read_write> result: array<vec4<u32>>;

// Sixteen bytes there and back an invocation.
@compute @workgroup_size(256)
fn ceiling_copy(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let i = item_index(workgroup, local);
    if (i >= params.items) {
        return;
    }
    result[i] = x[i];
}

fn high4(a: vec4<u32>, b: vec4<u32>) -> vec4<u32> {
    return vec4<u32>(mul_high(a.x, b.x), mul_high(a.y, b.y), mul_high(a.z, b.z), mul_high(a.w, b.w));
}

#ifdef HIGH
// a to high(a b) + b.
fn step(a: vec4<u32>, b: vec4<u32>) -> vec4<u32> {
    return high4(a, b) + b;
}
#else
// a to a b + b, one multiply-add on most devices. The sum keeps compilers from taking powers of b.
fn step(a: vec4<u32>, b: vec4<u32>) -> vec4<u32> {
    return a * b + b;
}
#endif

// Eight chains of products an invocation, each of 16 steps a round.
fn chains(i: u32) -> vec4<u32> {
    let b = vec4<u32>(i * 8u + 0x9e3779b1u, i * 4u + 0x85ebca6bu, i * 2u + 0xc2b2ae35u, i + 0x27d4eb2fu);
    var a0 = b + 1u;
    var a1 = b + 3u;
    for (var round = 0u; round < params.rounds; round++) {
        a0 = step(a0, b);
        a1 = step(a1, b);
        a0 = step(a0, b);
        a1 = step(a1, b);
        a0 = step(a0, b);
        a1 = step(a1, b);
        a0 = step(a0, b);
        a1 = step(a1, b);
        a0 = step(a0, b);
        a1 = step(a1, b);
        a0 = step(a0, b);
        a1 = step(a1, b);
        a0 = step(a0, b);
        a1 = step(a1, b);
        a0 = step(a0, b);
        a1 = step(a1, b);
        a0 = step(a0, b);
        a1 = step(a1, b);
        a0 = step(a0, b);
        a1 = step(a1, b);
        a0 = step(a0, b);
        a1 = step(a1, b);
        a0 = step(a0, b);
        a1 = step(a1, b);
        a0 = step(a0, b);
        a1 = step(a1, b);
        a0 = step(a0, b);
        a1 = step(a1, b);
        a0 = step(a0, b);
        a1 = step(a1, b);
        a0 = step(a0, b);
        a1 = step(a1, b);
    }
    return a0 ^ a1;
}

// Low products, or with HIGH high products.
@compute @workgroup_size(256)
fn ceiling_products(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let i = item_index(workgroup, local);
    if (i >= params.items) {
        return;
    }
    result[i] = chains(i);
}
